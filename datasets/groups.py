"""Groups of images: those of one patient or one lesion."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from common.errors import InputError, listed
from common.names import clean, printable

from . import Collection
from .listing import NAMED
from .own import GROUP
from .tables import has_columns, require_unique, table_rows

IDS = ("image", "path")  # columns of ids: of a file of groups, or of a file of images


def with_groups(data: Collection, table: Path, column: str | None = None) -> Collection:
    """Return `data` with the groups in the CSV file `table`, instead of its own.

    The file has the columns `image` or `path`, the id of an image, and `column` (by default
    `group`). An image without a group there has none. Ids that `data` lacks are noted. Raises
    InputError as `table_rows` does, for an id that is listed twice, and if no id is in `data`.
    """
    column = column or GROUP
    read: list[str] = []
    image = next((name for name in IDS if has_columns(table, (name,))), IDS[0])
    try:
        rows = [row for _, row in table_rows(table, (image, column), read)]
    except InputError as error:
        if has_columns(table, (image,)) and not has_columns(table, (image, column)):
            raise InputError(f"{error}; --group-column NAME takes another column") from None
        raise
    ids = {*data.base.ids, *data.rare.ids}
    known = ids | {*data.others.ids}
    names = list(map(finder(known), (row[image] for row in rows)))
    labels = [clean(row[column]) for row in rows]
    require_unique(table, names, labels)
    groups = dict(zip(names, labels))
    if not ids & groups.keys():
        raise InputError(
            f"--groups {table}: none of its {len(groups)} ids is an image of {data.name}, whose "
            f"ids are such as {listed(data.rare.ids, 2)}"
        )
    notes = (*data.notes, *read)
    if unknown := [i for i in groups if i not in known]:
        names = listed(map(printable, unknown), NAMED)
        notes += (f"{len(unknown)} ids in {table.name} are no images: {names}",)
    return replace(data, groups=groups, notes=notes)


def with_folders(data: Collection) -> Collection:
    """Return `data` with the first folder below the class folder as each image's group; folders of
    one name in two classes are one group, and an image directly in its class folder has none.

    Raises InputError if no image lies in such a folder.
    """
    used = {*data.base.ids, *data.rare.ids}
    if not used & data.folders.keys():
        raise InputError(
            f"--group-folders: {data.name} has no folders within its class folders; give groups as "
            "--groups FILE, or in a CSV file of images as a column group"
        )
    return replace(data, groups=data.folders)


def finder(ids: Iterable[str]) -> Callable[[str], str]:
    """Return a function that gives, for an id as typed, the one of `ids` that it is but for its
    slashes and Unicode form; the name itself if there is none."""
    id_of = {i: i for i in ids}
    by_form = {_form(i): i for i in id_of}
    return lambda name: id_of.get(name) or by_form.get(_form(name), name)


def _form(name: str) -> str:
    """Return an id with either slash and in any Unicode form, for comparison."""
    return clean(name.replace("\\", "/"))
