"""MedMNIST's .npz files (Yang et al. 2023), of any of their sizes."""

import zipfile
from pathlib import Path

from common.errors import InputError, listed, refusing
from common.files import read_array

from .images import ArrayImage

NAME = None  # the file's
PARTS = ("train", "val", "test")  # all are used
ARRAYS = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")]
DERMA = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")  # DermaMNIST's labels 0 … 6
# DermaMNIST's split is that of ISIC 2018, from which it was made; other files have none.
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")
LAYOUT = "a MedMNIST .npz file"


def recognises(root: Path) -> bool:
    return root.suffix == ".npz" and root.is_file()


def rows(root: Path) -> list[tuple[str, ArrayImage, str]]:
    """(id, where in the file, class) of every image; ids are like train/000123, classes the
    labels' numbers, or DermaMNIST's names.

    Raises InputError if the file cannot be read, or does not hold what MedMNIST's do.
    """
    with refusing(f"{root} cannot be read as a MedMNIST file"), zipfile.ZipFile(root) as file:
        there = {name.removesuffix(".npy") for name in file.namelist()}
        if missing := [name for name in ARRAYS if name not in there]:
            raise InputError(f"{root} is not a MedMNIST file: it lacks {listed(missing)}")
        labels = {part: read_array(file, f"{part}_labels") for part in PARTS}
    names = DERMA if root.name.startswith("dermamnist") else None
    found = []
    for part, numbers in labels.items():
        if numbers.ndim != 2 or numbers.shape[1] != 1 or numbers.dtype.kind not in "iu":
            raise InputError(f"{root}: {part}_labels is not a column of class numbers")
        for row, number in enumerate(numbers[:, 0].tolist()):
            if names and not 0 <= number < len(names):
                raise InputError(f"{root}: {part}_labels, row {row}: {number} is no class")
            label = names[number] if names else str(number)
            image = ArrayImage(root, f"{part}_images", row)
            found.append((f"{part}/{row:06d}", image, label))
    return found
