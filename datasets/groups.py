"""Groups of images: those of one patient or one lesion."""

from dataclasses import replace
from pathlib import Path

from common.errors import InputError, listed

from . import NAMED, Collection
from .own import GROUP
from .tables import require_unique, table_rows

IMAGE = "image"  # the column of ids


def with_groups(data: Collection, table: Path, column: str | None = None) -> Collection:
    """Return `data` with the groups in the CSV file `table`, instead of its own.

    The file has the columns `image`, the id of an image, and `column` (by default `group`). An
    image without a group there has none. Ids that `data` lacks are noted. Raises InputError as
    `table_rows` does, for an id that is listed twice, and if no id is in `data`.
    """
    column = column or GROUP
    rows = [row for _, row in table_rows(table, (IMAGE, column))]
    require_unique(table, (row[IMAGE] for row in rows))
    groups = {row[IMAGE]: row[column] for row in rows}
    ids = {*data.base.ids, *data.rare.ids}
    if not ids & groups.keys():
        raise InputError(
            f"--groups {table}: none of its {len(groups)} ids is an image of {data.name}, whose "
            f"ids are such as {listed(data.rare.ids, 2)}"
        )
    notes, others = data.notes, set(data.others.ids)
    if unknown := [i for i in groups if i not in ids and i not in others]:
        notes += (f"{len(unknown)} ids in {table.name} are no images: {listed(unknown, NAMED)}",)
    return replace(data, groups=groups, notes=notes)
