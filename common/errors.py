"""The error shown to users as one line, and helpers for its text."""

import contextlib
import errno
from collections.abc import Iterable, Iterator

NO_MEMORY = "can't allocate memory"  # torch on a CPU


class InputError(ValueError):
    """Invalid user input; the message is shown as a single line."""

    def __str__(self) -> str:
        # A DataLoader worker re-raises errors with the traceback as their message; file names may
        # contain line breaks.
        message = super().__str__().rstrip().rpartition("InputError: ")[2]
        return " ".join(message.splitlines())


def reason(error: Exception) -> str:
    """Return the first sentence of another library's error, without the path and advice."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, KeyError):
        text = f"missing {text}"
    return (text.strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Re-raise any exception of the block, which reads a file, as InputError "`what`: reason".

    Not one `of_the_machine`, which says nothing about this file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise errors of every kind
        if of_the_machine(error):
            raise
        raise InputError(f"{what}: {reason(error)}") from error


def of_the_machine(error: Exception) -> bool:
    """Return whether a file was not read for lack of memory or because too many are open."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return isinstance(error, MemoryError) or NO_MEMORY in str(error)


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
