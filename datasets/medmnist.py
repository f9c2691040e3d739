"""MedMNIST .npz files (Yang et al. 2023) of any image size."""

import zipfile
from pathlib import Path

from common.errors import InputError, listed, refusing
from common.files import array_shape, read_array

from . import isic2018
from .listing import ArrayImage, Listing, Row

NAME = None  # taken from the file name
PARTS = ("train", "val", "test")  # all are used
ARRAYS = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")]
DERMA = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")  # DermaMNIST's labels 0 … 6
# DermaMNIST is split like ISIC 2018, its source; other files have no default split.
BASE_CLASSES, RARE_CLASSES = isic2018.BASE_CLASSES, isic2018.RARE_CLASSES
LAYOUT = "a MedMNIST .npz file"


def recognises(root: Path) -> bool:
    """Return whether `root` is an .npz file."""
    return root.suffix.lower() == ".npz" and root.is_file()


def find(root: Path) -> Listing:
    """Return every image, with ids such as train/000123.

    Classes are the label numbers, or names for DermaMNIST. Raises InputError if the file is
    unreadable, lacks MedMNIST's arrays, or has not a label for each image.
    """
    with refusing(f"{root} cannot be read as a MedMNIST file"), zipfile.ZipFile(root) as file:
        available = {name.removesuffix(".npy") for name in file.namelist()}
        if missing := [name for name in ARRAYS if name not in available]:
            raise InputError(f"{root} is not a MedMNIST file: missing {listed(missing)}")
        labels = {part: read_array(file, f"{part}_labels") for part in PARTS}
        shapes = {part: array_shape(file, f"{part}_images") for part in PARTS}
    names = DERMA if root.name.startswith("dermamnist") else None
    listing = Listing()
    listing.pass_over("other arrays", *sorted(available - set(ARRAYS)))
    for part, numbers in labels.items():
        if numbers.ndim != 2 or numbers.shape[1] != 1 or numbers.dtype.kind not in "iu":
            raise InputError(f"{root}: {part}_labels must be integers of shape M×1")
        shape = shapes[part]
        if shape[:1] != numbers.shape[:1]:
            raise InputError(
                f"{root}: {part}_images has {listed(shape[:1]) or 0} images, but {part}_labels "
                f"has {len(numbers)} labels"
            )
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (3, 4)):
            raise InputError(
                f"{root}: {part}_images must be of shape M×H×W or M×H×W×3, "
                f"got {'×'.join(map(str, shape))}"
            )
        for row, number in enumerate(numbers[:, 0].tolist()):
            if names and not 0 <= number < len(names):
                raise InputError(
                    f"{root}: {part}_labels, row {row}: must be in [0, {len(names) - 1}], "
                    f"got {number}"
                )
            label = names[number] if names else str(number)
            image = ArrayImage(root, f"{part}_images", row)
            listing.rows.append(Row(f"{part}/{row:06d}", image, label))
    return listing
