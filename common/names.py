"""Names that people type, compared as people read them."""

import difflib
from collections.abc import Iterable, Mapping
from unicodedata import category, normalize

from .errors import listed

INVISIBLE = {"Cf", "Cc"}  # categories: zero-width spaces, byte-order marks, control characters


def clean(name: str) -> str:
    """Return `name` in Unicode NFC, without spaces and invisible characters at its ends."""
    name = normalize("NFC", name)
    visible = [i for i, c in enumerate(name) if not (c.isspace() or category(c) in INVISIBLE)]
    return name[visible[0] : visible[-1] + 1] if visible else ""


def folded(name: str) -> str:
    """Return what is left of `name` without capitals, invisible characters and repeated spaces, for
    finding near misses."""
    name = normalize("NFKC", name).casefold()
    visible = "".join(c for c in name if c.isspace() or category(c) not in INVISIBLE)
    return " ".join(visible.split())


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that resembles `name` most, or None."""
    by_form = {folded(other): other for other in names}
    close = difflib.get_close_matches(folded(name), by_form, n=1, cutoff=0.5)
    return by_form[close[0]] if close else None


def printable(name: str) -> str:
    """Return `name` with escapes for characters that would not print on one line."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def quoted(name: str) -> str:
    """Return a class name in quotes, for a message."""
    return f"'{printable(name)}'"


def beside_numbers(names: Iterable[str]) -> list[str]:
    """Return class names for a line or table with numbers: as they are or, if one is not a plain
    word, such as 3, all in quotes."""
    names = list(names)
    return names if all(map(str.isidentifier, names)) else list(map(quoted, names))


def counted(counts: Mapping[str, int], limit: int = 20) -> str:
    """Return the first `limit` numbers of images by class as text: "NV 30, MEL 60"."""
    return listed(map("{} {}".format, beside_numbers(counts), counts.values()), limit)
