"""The papers' tables: how one is narrowed (study), what it needs (plan), getting it done (run), the
result (table)."""

import common.startup  # noqa: F401
