"""Imported by scripts before torch, which takes seconds and reads the environment as it is loaded.

Ctrl-C during the imports ends a command with one line. OpenMP's threads wait without spinning,
unless OMP_WAIT_POLICY says otherwise: spinning ones hold the cores that others need as soon as
anything else runs on the machine. Processes that a script starts inherit it.
"""

import os
import sys
from types import TracebackType

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _excepthook
