"""User-provided images: one folder per class, or a CSV file of paths and labels."""

import os
from pathlib import Path

from common.errors import InputError, listed

from .images import image_files
from .listing import Listing, Row
from .tables import require_unique, table_rows

NAME = None  # taken from the folder or file name
BASE_CLASSES = RARE_CLASSES = None  # given by the user
COLUMNS = ("path", "label")
GROUP = "group"  # an optional column: the patient or lesion
LAYOUT = "one folder per class, or a CSV file with the columns path and label"


def recognises(root: Path) -> bool:
    """Return whether `root` is a CSV file or has subfolders."""
    return root.suffix.lower() == ".csv" or any(_folders(root))


def find(root: Path, group_column: str | None = None) -> Listing:
    """Return every image, with its group where the CSV file has a column `group`.

    The id is the path relative to the folder `root`, or as written in the CSV file, where paths
    are absolute or relative to the file's folder. `group_column` is another name of that column,
    which must then exist. Raises InputError for a folder without images in
    class folders; for a CSV file as `table_rows` does, or with no rows, duplicate paths or missing
    files.
    """
    return _from_csv(root, group_column) if root.is_file() else _from_folders(root)


def _folders(root: Path) -> list[Path]:
    entries = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in entries if path.is_dir() and path.name[0] != ".")


def _from_folders(root: Path) -> Listing:
    found = [
        Row(folder.name + str(path).removeprefix(str(folder)), path, folder.name)
        for folder in _folders(root)
        for path in image_files(folder, recursive=True)
    ]
    if not found:
        raise InputError(f"no images in the subfolders of {root}; expected {LAYOUT}")
    return Listing(found)


def _from_csv(table: Path, group_column: str | None) -> Listing:
    rows = [row for _, row in table_rows(table, COLUMNS)]
    column = group_column or GROUP
    if group_column and rows and group_column not in rows[0]:
        raise InputError(
            f"--group-column {group_column}: {table} has the columns {','.join(rows[0])}"
        )
    found = [
        Row(row["path"], table.parent / row["path"], row["label"], row.get(column) or None)
        for row in rows
    ]
    if not found:
        raise InputError(f"{table} lists no images")
    require_unique(table, (os.path.normpath(row.path) for row in found))
    if missing := [row.path for row in found if not os.path.isfile(row.path)]:
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing: "
            + listed(missing)
        )
    return Listing(found)
