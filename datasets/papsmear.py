"""Herlev Pap-smear dataset (Jantzen et al. 2005): one folder per class."""

import os
from pathlib import Path

from common.errors import InputError, listed
from common.names import printable

from .listing import NAMED, OUTSIDE, Listing

NAME = "papsmear"
BASE_CLASSES = (
    "light_dysplastic",
    "moderate_dysplastic",
    "severe_dysplastic",
    "carcinoma_in_situ",
)
# A_1, A_2, A_3 of the papers' tables: columnar, superficial and intermediate squamous.
RARE_CLASSES = ("normal_columnar", "normal_superficiel", "normal_intermediate")
CLASSES = BASE_CLASSES + RARE_CLASSES
LAYOUT = "class folders " + " ".join(CLASSES)


def recognises(root: Path) -> bool:
    """Return whether `root` has at least one of the class folders."""
    return any((root / name).exists() for name in CLASSES)


def find(root: Path) -> Listing:
    """Return every cell image; the id is its path relative to `root`.

    Segmentations are passed over. Raises InputError for a class folder that is missing or empty.
    """
    if missing := [root / name for name in CLASSES if not (root / name).is_dir()]:
        raise InputError(f"missing class folders: {listed(missing)}")
    listing = Listing()
    for name in CLASSES:
        listing.add_folder(root, root / name, name)
    pass_over_segmentations(listing)
    available = {row.label for row in listing.rows}
    if empty := [root / name for name in CLASSES if name not in available]:
        raise InputError(f"no images in the class folder {listed(empty)}")
    listing.pass_over_rest(root, CLASSES, OUTSIDE)
    return listing


def pass_over_segmentations(listing: Listing) -> None:
    """Pass over the segmentation NAME-d.bmp of each NAME.BMP, in whatever capitals."""
    stem_of = {row.id: os.path.splitext(row.id)[0].casefold() for row in listing.rows}
    stems = set(stem_of.values())
    masks = {i for i, stem in stem_of.items() if stem.endswith("-d") and stem[:-2] in stems}
    listing.rows = [row for row in listing.rows if row.id not in masks]
    listing.pass_over("segmentations", *sorted(masks))
    if orphans := sorted(i for i, s in stem_of.items() if s.endswith("-d") and i not in masks):
        listing.notes.append(
            f"{len(orphans)} images are named like segmentations, without their cell: "
            + listed(map(printable, orphans), NAMED)
        )
