"""A user's own images: one folder a class, or a CSV file with a path and a label a line."""

import os
from pathlib import Path

from common.errors import InputError, listed

from .images import image_files
from .tables import refuse_twice, table_rows

NAME = None  # the folder's or file's
BASE_CLASSES = RARE_CLASSES = None  # for the user to say
COLUMNS = ("path", "label")
LAYOUT = "one folder a class, or a CSV file with the columns path and label"


def recognises(root: Path) -> bool:
    return root.suffix.lower() == ".csv" or any(_folders(root))


def rows(root: Path) -> list[tuple[str, Path, str]]:
    """(id, path, class) of every image. The id is its path in the folder `root`, or as it stands
    in the CSV file, where paths are absolute or start from the file's folder.

    Raises InputError for a folder without class folders of images; for a CSV as `table_rows` does,
    or with no rows, a path listed twice, or files that are not there.
    """
    return _from_csv(root) if root.is_file() else _from_folders(root)


def _folders(root: Path) -> list[Path]:
    inside = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and path.name[0] != ".")


def _from_folders(root: Path) -> list[tuple[str, Path, str]]:
    found = [
        (folder.name + str(path).removeprefix(str(folder)), path, folder.name)
        for folder in _folders(root)
        for path in image_files(folder, deep=True)
    ]
    if not found:
        raise InputError(f"no images in the folders of {root}; expected {LAYOUT}")
    return found


def _from_csv(table: Path) -> list[tuple[str, Path, str]]:
    rows = [row for _, row in table_rows(table, COLUMNS)]
    found = [(row["path"], table.parent / row["path"], row["label"]) for row in rows]
    if not found:
        raise InputError(f"{table} lists no images")
    refuse_twice(table, (os.path.normpath(path) for _, path, _ in found))
    if missing := [path for _, path, _ in found if not os.path.isfile(path)]:
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing: "
            + listed(missing)
        )
    return found
