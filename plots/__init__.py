"""The papers' figures: read runs and scores (read), draw them (draw)."""

import common.interrupt  # noqa: F401
