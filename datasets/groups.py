"""Groups of images: those of one patient or one lesion."""

from dataclasses import replace
from pathlib import Path

from common.errors import InputError, listed

from . import Collection
from .own import GROUP
from .tables import has_columns, table_groups


def with_groups(data: Collection, table: Path, column: str | None = None) -> Collection:
    """Return `data` with the groups in the CSV file `table`, instead of its own.

    The file has the columns `image` or `path`, the id of an image, and `column` (by default
    `group`). An image without a group there has none. Ids that `data` lacks are noted. Raises
    InputError as `table_rows` does, for an id that is listed twice, and if no id is in `data`.
    """
    notes = list(data.notes)
    ids = (*data.base.ids, *data.rare.ids)
    try:
        groups = table_groups(table, column or GROUP, (*ids, *data.others.ids), notes)
    except InputError:
        if column or has_columns(table, (GROUP,)) or not has_columns(table, ()):
            raise
        what = f"{table} has no column {GROUP}; name its column as --group-column"
        raise InputError(what) from None
    if not groups.keys() & {*ids}:
        raise InputError(
            f"--groups {table}: none of its {len(groups)} ids is an image of {data.name}, whose "
            f"ids are such as {listed(data.rare.ids, 2)}"
        )
    return replace(data, groups=groups, notes=tuple(notes))


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
