"""Speed, memory and accuracy, compared with a plain implementation."""

import common.startup  # noqa: F401
