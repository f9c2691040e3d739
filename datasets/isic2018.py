"""ISIC 2018 Task 3 (HAM10000): the official download, unzipped, as it is."""

import contextlib
import os
from pathlib import Path

from common.errors import InputError, listed

from .tables import refuse_twice, table_rows

NAME = "isic2018"
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")  # A_1, A_2, A_3 of the papers' tables
COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
IMAGES = "ISIC2018_Task3_Training_Input"
GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
LAYOUT = f"{IMAGES}/ISIC_*.jpg and {GROUND_TRUTH}/{GROUND_TRUTH}.csv"


def recognises(root: Path) -> bool:
    return (root / IMAGES).exists() or (root / GROUND_TRUTH).exists()


def rows(root: Path) -> list[tuple[str, Path, str]]:
    """(id, path, class) of every image in the ground truth; a note says of images without a row.

    Raises InputError for a missing file, other columns, or a row that is not one-hot.
    """
    table, folder = root / GROUND_TRUTH / f"{GROUND_TRUTH}.csv", root / IMAGES
    if not table.is_file():
        raise InputError(f"the ground truth is missing: {table}")
    if not folder.is_dir():
        raise InputError(f"the image folder is missing: {folder}")
    found = [
        (row["image"], folder / f"{row['image']}.jpg", _class(row, f"{table}, line {line}"))
        for line, row in table_rows(table, COLUMNS)
    ]
    refuse_twice(table, (name for name, _, _ in found))
    present = set(os.listdir(folder))
    listed_here = {f"{name}.jpg" for name, _, _ in found}  # an id with slashes is no file's name
    if missing := sorted(listed_here - present):
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing in {folder}: "
            + listed(missing)
        )
    if rest := sorted(name for name in present - listed_here if name.endswith(".jpg")):
        print(f"note: {len(rest)} images in {folder} are not in {table.name}: {listed(rest, 3)}")
    return found


def _class(row: dict[str, str], where: str) -> str:
    names = COLUMNS[1:]
    with contextlib.suppress(ValueError):
        values = [float(row[name]) for name in names]
        if sorted(values) == [0] * (len(names) - 1) + [1]:
            return names[values.index(1)]
    raise InputError(f"{where}: expected an image id, a single 1 and zeros")


def lesions(root: Path) -> dict[str, str]:
    """The lesion that each image shows, by image id, from the official lesion groupings.

    Raises InputError if their file is missing, has other columns, or an image twice.
    """
    places = (root / GROUPINGS, root / GROUND_TRUTH / GROUPINGS)
    table = next((path for path in places if path.is_file()), None)
    if table is None:
        raise InputError(f"the lesion groupings are missing: {root / GROUPINGS}")
    rows = [row for _, row in table_rows(table, ("image", "lesion_id"))]
    refuse_twice(table, (row["image"] for row in rows))
    return {row["image"]: row["lesion_id"] for row in rows}
