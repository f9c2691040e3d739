"""Signals end a run between two steps, all its processes at the same one, and nothing is lost."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType

# SIGTERM and SIGUSR1 are what clusters send before they take a machine away; SIGINT is Ctrl-C.
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
]
EXIT_CODES = [128 + signum for signum in SIGNALS]  # as shells count: 143, 138 and 130
TWICE = 1  # seconds within which two of the same signal are one
GO_ON, SAVE = 0, 1  # what else than a signal's number a process may have to say
Handler = Callable[[int, FrameType | None], object]


class Stopped(Exception):
    """The run was asked to end by a signal, and has saved where it is, if it had begun."""

    def __init__(self, signum: int, begun: bool = True):
        super().__init__(signum)
        self.signum, self.begun = signum, begun

    def __str__(self) -> str:
        when = "after saving" if self.begun else "while its processes started"
        return (
            f"stopped by {signal.Signals(self.signum).name} {when}; the same command goes on "
            "(without --overwrite)"
        )

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


class Watch:
    """What has been asked of a run since the last step: to save, to stop, or nothing. `agree` gives
    the highest of all processes' numbers."""

    def __init__(self, save_minutes: float, agree: Callable[[int], int]):
        self.every = 60 * save_minutes or float("inf")
        self.agree = agree
        self.saved = time.monotonic()
        self.signum, self.noted = 0, 0.0

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The signals' handler. A second Ctrl-C ends the process at once."""
        now = time.monotonic()  # the terminal's own comes twice: from it, and passed on by `launch`
        if signum == self.signum == signal.SIGINT and now - self.noted > TWICE:
            raise KeyboardInterrupt
        self.signum, self.noted = signum, now

    def wanted(self) -> int:
        """GO_ON, SAVE, or the number of the signal on which to stop: the same in every process."""
        due = SAVE if time.monotonic() - self.saved > self.every else GO_ON
        word = self.agree(self.signum or due)
        if word:
            self.saved = time.monotonic()
        return word


@contextlib.contextmanager
def watching(save_minutes: float, agree: Callable[[int], int]) -> Iterator[Watch]:
    """A Watch that gets this process's signals while the block runs."""
    watch = Watch(save_minutes, agree)
    with handling(watch.note):
        yield watch


@contextlib.contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Have `handler` get the signals while the block runs (in a program's main thread alone)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def hold() -> None:
    """Have the signals wait, here and in processes that are begun from now on, until `release`."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Have the signals come, first those that waited."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore(*_: object) -> None:
    """For processes that help another, which has the signals' say."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def passing_on(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Have the signals that this process gets while the block runs reach `processes`, and a list,
    and nothing else happen."""
    seen: list[int] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                if process.pid is not None:  # it has been started
                    os.kill(process.pid, signum)

    with handling(handler):
        yield seen
