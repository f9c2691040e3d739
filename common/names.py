"""Names that people type, compared as people read them."""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping

from .errors import listed

INVISIBLE = {"Cf", "Cc"}  # zero-width spaces, byte-order marks, control characters


def clean(name: str) -> str:
    """Return `name` in Unicode NFC, without spaces and invisible characters at its ends."""
    name = unicodedata.normalize("NFC", name)
    visible = [i for i, c in enumerate(name) if not (c.isspace() or _invisible(c))]
    return name[visible[0] : visible[-1] + 1] if visible else ""


def folded(name: str) -> str:
    """Return what is left of `name` without capitals, invisible characters and repeated spaces, for
    finding near misses."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(c for c in name if c.isspace() or not _invisible(c)).split())


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
    """Return a class name for a message: in quotes unless it is one plain word, so that a number
    before or behind it stays apart."""
    name = printable(name)
    return name if name.isidentifier() else f"'{name}'"


def counted(counts: Mapping[str, int], limit: int = 20) -> str:
    """Return the first `limit` numbers of images by class as text: "NV 30, '4' 60"."""
    return listed((f"{quoted(name)} {count}" for name, count in counts.items()), limit)


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE
