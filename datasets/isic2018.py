"""ISIC 2018 Task 3 (HAM10000), in the layout of the official download."""

import contextlib
import os
from pathlib import Path

from common.errors import InputError, listed

from .listing import Listing, Row
from .tables import require_unique, table_rows

NAME = "isic2018"
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")  # A_1, A_2, A_3 of the papers' tables
COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
IMAGES = "ISIC2018_Task3_Training_Input"
GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
LAYOUT = f"{IMAGES}/ISIC_*.jpg and {GROUND_TRUTH}/{GROUND_TRUTH}.csv"


def recognises(root: Path) -> bool:
    """Return whether `root` has this layout."""
    return (root / IMAGES).exists() or (root / GROUND_TRUTH).exists()


def find(root: Path) -> Listing:
    """Return every image in the ground truth, with its lesion as its group if the groupings are
    there; images without a row are passed over.

    Raises InputError for a missing file, unexpected columns, or a row that is not one-hot.
    """
    table, folder = root / GROUND_TRUTH / f"{GROUND_TRUTH}.csv", root / IMAGES
    if not table.is_file():
        raise InputError(f"ground truth is missing: {table}")
    if not folder.is_dir():
        raise InputError(f"image folder is missing: {folder}")
    rows, lesion_of = table_rows(table, COLUMNS), lesions(root)
    found = [
        Row(
            row["image"],
            folder / f"{row['image']}.jpg",
            _class(row, f"{table}, line {line}"),
            lesion_of.get(row["image"]),
        )
        for line, row in rows
    ]
    require_unique(table, (row.id for row in found))
    present = set(os.listdir(folder))
    expected = {f"{row.id}.jpg" for row in found}  # compared as names: ids are not paths
    if missing := sorted(expected - present):
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing from {folder}: "
            + listed(missing)
        )
    listing = Listing(found)
    extra = sorted(name for name in present - expected if name.endswith(".jpg"))
    listing.pass_over(f"not in {table.name}", *extra)
    return listing


def _class(row: dict[str, str], location: str) -> str:
    names = COLUMNS[1:]
    with contextlib.suppress(ValueError):
        values = [float(row[name]) for name in names]
        if sorted(values) == [0] * (len(names) - 1) + [1]:
            return names[values.index(1)]
    raise InputError(f"{location}: expected an image id and one-hot values")


def lesions(root: Path) -> dict[str, str]:
    """Return the lesion id of each image id, from the official lesion groupings, if there.

    Raises InputError if the file has unexpected columns or duplicate images.
    """
    candidates = (root / GROUPINGS, root / GROUND_TRUTH / GROUPINGS)
    table = next((path for path in candidates if path.is_file()), None)
    if table is None:
        return {}
    rows = [row for _, row in table_rows(table, ("image", "lesion_id"))]
    require_unique(table, (row["image"] for row in rows))
    return {row["image"]: row["lesion_id"] for row in rows}
