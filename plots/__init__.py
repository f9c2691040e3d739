"""The papers' figures: read runs and scores (read), draw them (draw)."""

import common.startup  # noqa: F401
