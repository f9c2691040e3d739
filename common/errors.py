"""What is said to people: one error class, and the words of its line."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used; the message is the one line to show them."""

    def __str__(self) -> str:
        # A DataLoader's worker hands an error on with its traceback as the message. Names of files
        # may hold line breaks.
        message = super().__str__().rstrip().rpartition("InputError: ")[2]
        return " ".join(message.splitlines())


def reason(error: Exception) -> str:
    """What an error of another library says, its first sentence (advice follows, and guesses),
    without the path that we name anyway."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, KeyError):
        text = f"it lacks {text}"
    return (text.strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise whatever goes wrong in here, where a file is read, as InputError: `what`, and why."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # broken bytes lead libraries to errors of every kind
        raise InputError(f"{what}: {reason(error)}") from error


def is_text(name: str) -> bool:
    """Can it be written as UTF-8? Names of files that are other bytes cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(items: Iterable[object], limit: int = 10) -> str:
    """`a, b, c and 12 more`."""
    words = [str(item) for item in items]
    rest = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {rest} more" if rest > 0 else "")


def require_match(given: dict, recorded: dict, where: str | Path) -> None:
    """Raise InputError naming both sides if a value of `given` that is not None differs from
    the one `recorded` in the file `where`."""
    for name, value in given.items():
        made_with = recorded.get(name)
        if value is not None and value != made_with:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} {value} conflicts with {where}, created with {flag} {made_with}"
            )
