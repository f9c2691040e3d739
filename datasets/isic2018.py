"""ISIC 2018 Task 3 (HAM10000), in the layout of the official download."""

import contextlib
import os
from pathlib import Path

from common.errors import InputError, listed

from .listing import Listing, Row, reason_to_pass_over
from .tables import require_unique, table_groups, table_rows

NAME = "isic2018"
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")  # A_1, A_2, A_3 of the papers' tables
COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
IMAGES = "ISIC2018_Task3_Training_Input"
GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
OUTSIDE = "outside the layout of ISIC 2018"
LAYOUT = f"{IMAGES}/ISIC_*.jpg and {GROUND_TRUTH}/{GROUND_TRUTH}.csv"


def recognises(root: Path) -> bool:
    """Return whether `root` has this layout."""
    return (root / IMAGES).exists() or (root / GROUND_TRUTH).exists()


def find(root: Path) -> Listing:
    """Return every image in the ground truth, with its lesion as its group if the groupings are
    there; others are passed over.

    Raises InputError for a missing file, unexpected columns, a row that is not one-hot, or an image
    that is listed twice.
    """
    table, folder = root / GROUND_TRUTH / f"{GROUND_TRUTH}.csv", root / IMAGES
    if not table.is_file():
        raise InputError(f"ground truth is missing: {table}")
    if not folder.is_dir():
        raise InputError(f"image folder is missing: {folder}")
    listing = Listing()
    rows = table_rows(table, COLUMNS, listing.notes)
    ids = [row["image"] for _, row in rows]
    require_unique(table, ids)
    places = (root / GROUPINGS, root / GROUND_TRUTH / GROUPINGS)
    groupings = next((path for path in places if path.is_file()), None)
    lesion_of = table_groups(groupings, "lesion_id", ids, listing.notes) if groupings else {}
    files: dict[str, str] = {}  # by id, .jpg first; compared as names: ids are not paths
    for name in sorted(os.listdir(folder), key=lambda name: (not name.endswith(".jpg"), name)):
        if not reason_to_pass_over(str(folder), name):
            files.setdefault(os.path.splitext(name)[0], name)
    labels = [_class(row, f"{table}, line {line}") for line, row in rows]
    if missing := sorted(f"{i}.jpg" for i in ids if i not in files):
        raise InputError(
            f"{len(missing)} of the {len(ids)} images in {table.name} are missing from {folder}: "
            + listed(missing)
        )
    listing.rows = [
        Row(i, folder / files[i], label, lesion_of.get(i)) for i, label in zip(ids, labels)
    ]
    used = {files[i] for i in ids}
    listing.pass_over_rest(folder, used, f"not in {table.name}", f"{IMAGES}/")
    for place, prefix in ((root, ""), (root / GROUND_TRUTH, f"{GROUND_TRUTH}/")):
        parts = {IMAGES, GROUND_TRUTH} if place == root else {table.name}
        parts |= {groupings.name} if groupings and groupings.parent == place else set()
        listing.pass_over_rest(place, parts, OUTSIDE, prefix)
    return listing


def _class(row: dict[str, str], location: str) -> str:
    names = COLUMNS[1:]
    with contextlib.suppress(ValueError):
        values = [float(row[name]) for name in names]
        if sorted(values) == [0] * (len(names) - 1) + [1]:
            return names[values.index(1)]
    raise InputError(f"{location}: expected an image id and one-hot values")
