"""Each image once: copies, which are files of the same content, are found and left out."""

from dataclasses import replace
from pathlib import Path

from common.errors import InputError, listed
from common.names import printable, quoted

from . import Collection
from .content import copies
from .listing import NAMED

REASON = "copies of another image"


def without_copies(data: Collection, cache: Path | None, allow: bool = False) -> Collection:
    """Return `data` with each content once: of copies in one class the first id stays.

    It takes over the group of a copy if it has none; if it has another, both groups become one.
    With `allow` all images stay. Either way the sets know which images are `copies`. Files are
    compared, or rows of an array file; their digests are kept in the folder `cache`. Raises
    InputError if a content is in two of the classes in use, unless `allow`; a content that is also
    in a class not in use is only noted.
    """
    rows = [*data.base.rows(), *data.rare.rows(), *data.others.rows()]
    used = {*data.base.classes, *data.rare.classes}
    first_of: dict[str, str] = {}
    class_of: dict[str, str] = {}
    relabelled, elsewhere = [], []
    for numbers in copies([row.path for row in rows], cache):
        same = sorted((rows[number] for number in numbers), key=lambda row: row.id)
        taken = [row for row in same if row.label in used]
        first_of |= {row.id: taken[0].id for row in taken[1:]}
        class_of |= {row.id: row.label for row in taken}
        if len({row.label for row in taken}) > 1:
            relabelled.append(" = ".join(f"{row.path} ({quoted(row.label)})" for row in taken))
        elif taken and len(taken) < len(same):
            other = next(row for row in same if row.label not in used)
            elsewhere.append(f"{taken[0].id} ({quoted(other.label)}: {other.id})")
    if relabelled and not allow:
        raise InputError(
            f"images that are in two classes ({len(relabelled)}): {listed(relabelled, NAMED)}; "
            "keep each in one of them, or add --allow-duplicates to count all copies as images"
        )
    groups, notes, regrouped = dict(data.groups), list(data.notes), []
    for i, first in first_of.items():
        if i in groups and groups.setdefault(first, groups[i]) != groups[i]:
            regrouped.append(f"{first} ({groups[first]}) = {i} ({groups[i]})")
            one, other = groups[first], groups[i]
            groups |= {name: one for name, group in groups.items() if group == other}
    which = (
        ("in two groups, which count as one", regrouped),
        ("also in a class not used", elsewhere),
    )
    for what, found in which:
        if found:
            names = listed(map(printable, found), NAMED)
            notes.append(f"images that are {what} ({len(found)}): {names}")
    base, rare = (
        replace(s, copies={i: first for i, first in first_of.items() if class_of[i] in s.classes})
        for s in (data.base, data.rare)
    )
    named = [f"{i} (as {first})" for i, first in sorted(first_of.items())]
    if allow and first_of:
        names = listed(map(printable, named), NAMED)
        notes.append(f"{len(first_of)} {REASON}, counted with --allow-duplicates: {names}")
    data = replace(data, base=base, rare=rare, groups=groups, notes=tuple(notes))
    return data if allow else data.without(sorted(first_of), REASON, named)
