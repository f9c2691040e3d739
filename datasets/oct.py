"""Retinal OCT: common classes from Kermany et al. 2018, rare ones from Yoo et al. 2021."""

from pathlib import Path

from common.errors import InputError, listed

from .listing import OUTSIDE, Listing

NAME = "oct"
BASE_CLASSES = ("NORMAL", "DME", "DRUSEN", "CNV")
RARE_CLASSES = (  # A_1 … A_5 of the papers' Table 6
    "central_serous_chorioretinopathy",
    "macular_telangiectasia",
    "macular_hole",
    "stargardt",
    "retinitis_pigmentosa",
)
CLASSES = BASE_CLASSES + RARE_CLASSES
PARTS = ("train", "val", "test")  # Kermany et al.'s; all are used
LAYOUT = (
    f"class folders {' '.join(BASE_CLASSES)}, at the top or in train, val and test, and "
    + " ".join(RARE_CLASSES)
)


def recognises(root: Path) -> bool:
    """Return whether `root` has a base and a rare class folder."""
    return any(_folders(root, BASE_CLASSES)) and any(_folders(root, RARE_CLASSES))


def find(root: Path) -> Listing:
    """Return every image; the id is its path relative to `root`.

    Raises InputError for a class without images.
    """
    listing = Listing()
    for folder in _folders(root, CLASSES):
        listing.add_folder(root, folder)
    available = {row.label for row in listing.rows}
    if missing := [name for name in CLASSES if name not in available]:
        raise InputError(f"no images of {listed(missing)} in {root}; expected {LAYOUT}")
    parts = [part for part in PARTS if any(_folders(root / part, CLASSES, parts=()))]
    listing.pass_over_rest(root, {*CLASSES, *parts}, OUTSIDE)
    for part in parts:
        listing.pass_over_rest(root / part, CLASSES, OUTSIDE, f"{part}/")
    return listing


def _folders(root: Path, names: tuple[str, ...], parts: tuple[str, ...] = PARTS) -> list[Path]:
    """Return the existing folders of the classes `names`, at the top or in `parts`."""
    parents = [root, *(root / part for part in parts)]
    return [parent / name for parent in parents for name in names if (parent / name).is_dir()]
