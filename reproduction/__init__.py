"""The papers' tables: what a table needs (plan), getting it done (run), and the table (table)."""

import common.startup  # noqa: F401
