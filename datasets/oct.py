"""Retinal OCT: the common classes of Kermany et al. 2018, five rare ones of Yoo et al. 2021."""

from pathlib import Path

from common.errors import InputError, listed

from .images import image_files

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
    f"the class folders {' '.join(BASE_CLASSES)}, in it or in its train, val and test, and "
    + " ".join(RARE_CLASSES)
)


def recognises(root: Path) -> bool:
    return any(_folders(root, BASE_CLASSES)) and any(_folders(root, RARE_CLASSES))


def rows(root: Path) -> list[tuple[str, Path, str]]:
    """(id, path, class) of every image; the id is its path in `root`.

    Raises InputError for a class without images.
    """
    found = [
        (str(path.relative_to(root)), path, folder.name)
        for folder in _folders(root, CLASSES)
        for path in image_files(folder)
    ]
    there = {label for _, _, label in found}
    if missing := [name for name in CLASSES if name not in there]:
        raise InputError(f"no images of {listed(missing)} in {root}; expected {LAYOUT}")
    return found


def _folders(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Those folders of the classes `names` that there are."""
    places = [root, *(root / part for part in PARTS)]
    return [place / name for place in places for name in names if (place / name).is_dir()]
