"""The error shown to users as one line, and helpers for its text."""

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Invalid user input; the message is shown as a single line."""

    def __str__(self) -> str:
        # A DataLoader worker re-raises errors with the traceback as their message; file names may
        # contain line breaks.
        message = super().__str__().rstrip().rpartition("InputError: ")[2]
        return " ".join(message.splitlines())


def reason(error: BaseException) -> str:
    """Return the first sentence of another library's error, without the path and advice."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, KeyError):
        text = f"missing {text}"
    return (text.strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Re-raise any exception of the block, which reads a file, as InputError "`what`: reason".

    Not one of too many open files or too little memory, which need not be this file's fault: these
    stay what they are.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise errors of every kind
        pass_on(error)
        raise InputError(f"{what}: {reason(error)}") from error


def pass_on(error: Exception, what: str | None = None) -> None:
    """Raise an error that the machine caused, not the file that was read: too little memory, which
    then says `what` was being read, or too many open files. Return for any other."""
    if what and out_of_memory(error):
        raise MemoryError(f"{what}: {requested(error)}") from error
    if out_of_memory(error) or too_many_open_files(error):
        raise error


def too_many_open_files(error: Exception) -> bool:
    """Return whether a file was not opened because this process or machine has too many open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory was lacking: Python's error, torch's on a GPU or CPU, Pillow's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, OSError | RuntimeError) and any(t in str(error) for t in texts)


def requested(error: BaseException) -> str:
    """Return how much memory was asked for or, if the error does not tell, its first sentence."""
    found = re.search(r"tried to allocate [\d.]+ \w+", str(error), re.IGNORECASE)
    return found[0].lower() if found else reason(error)


def is_text(name: str) -> bool:
    """Return whether a name is valid UTF-8, unlike file names decoded with surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(items: Iterable[object], limit: int = 10) -> str:
    """Return the first `limit` items as text: "a, b, c and 12 more"."""
    texts = [str(item) for item in items]
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")
