"""Save and stop on signals: between two steps, and on all ranks at the same step."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType

# Clusters send SIGTERM or SIGUSR1 before they reclaim a machine; SIGINT is Ctrl-C.
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
]
EXIT_CODES = [128 + signum for signum in SIGNALS]  # the shell's convention: 143, 138, 130
DUPLICATE_SECONDS = 1  # a repeated signal within this time counts as one
CONTINUE, SAVE = 0, 1  # actions besides stopping, which is the signal's number


class Stopped(Exception):
    """A signal stopped the run; if `started`, after saving a checkpoint."""

    def __init__(self, signum: int, started: bool = True):
        super().__init__(signum)
        self.signum, self.started = signum, started

    def __str__(self) -> str:
        when = "after saving" if self.started else "while starting processes"
        return (
            f"stopped by {signal.Signals(self.signum).name} {when}; rerun the same command to "
            "resume (without --overwrite)"
        )

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


class Watch:
    """Decides between steps whether to continue, save or stop, on the signals that `note` handles.
    `agree` returns the maximum of a number over all ranks."""

    def __init__(self, save_minutes: float, agree: Callable[[int], int]):
        self.every = 60 * save_minutes or float("inf")
        self.agree = agree
        self.saved = time.monotonic()
        self.signum, self.received = 0, 0.0

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal. A second Ctrl-C ends the process at once."""
        now = time.monotonic()  # one Ctrl-C arrives twice: from the terminal and from `launch`
        if signum == self.signum == signal.SIGINT and now - self.received > DUPLICATE_SECONDS:
            raise KeyboardInterrupt
        self.signum, self.received = signum, now

    def action(self) -> int:
        """Return CONTINUE, SAVE, or the number of the signal to stop on; the same on all ranks."""
        due = SAVE if time.monotonic() - self.saved > self.every else CONTINUE
        action = self.agree(self.signum or due)
        if action:
            self.saved = time.monotonic()
        return action


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Install `handler` for SIGNALS within the block; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


def hold() -> None:
    """Block SIGNALS in this process and in those it starts, until `release`."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Unblock SIGNALS; pending ones are delivered at once."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore(*_: object) -> None:
    """Ignore SIGNALS, in a helper process whose parent handles them."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def forwarding(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Forward this process's SIGNALS to `processes` within the block, and collect them in the list
    provided."""
    received: list[int] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                if process.pid is not None:  # None before it starts
                    os.kill(process.pid, signum)

    with handling(handler):
        yield received
