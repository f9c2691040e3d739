"""Herlev Pap-smear dataset (Jantzen et al. 2005): one folder per class."""

from pathlib import Path

from common.errors import InputError, listed

from .images import image_files
from .listing import Listing, Row

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
    """Return every cell image; the id is `class/file name`.

    The segmentation NAME-d.bmp of NAME.BMP is ignored.
    Raises InputError for a class folder that is missing or empty.
    """
    missing = [root / name for name in CLASSES if not (root / name).is_dir()]
    if missing:
        raise InputError(f"missing class folders: {listed(missing)}")
    listing = Listing()
    for name in CLASSES:
        files = image_files(root / name)
        stems = {path.stem for path in files}
        images = [f for f in files if not (f.stem.endswith("-d") and f.stem[:-2] in stems)]
        if not images:
            raise InputError(f"no images in the class folder {root / name}")
        listing.rows += [Row(f"{name}/{path.name}", path, name) for path in images]
    return listing
