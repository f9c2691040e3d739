"""What the method is fed: the base and rare images of a data folder, tasks, pseudo labels."""

from dataclasses import dataclass
from pathlib import Path

from . import isic2018, papsmear
from .files import InputError
from .images import ImageSet, image_set

DATASETS = (isic2018, papsmear)


@dataclass(frozen=True)
class Collection:
    """D_base, the common diseases and normal controls, and D_rare."""

    name: str
    base: ImageSet
    rare: ImageSet


def open_dataset(folder: str | Path) -> Collection:
    """The dataset in `folder`, recognised by its layout; no preparation is needed.

    Reads names and labels, no pixels. Raises InputError where the folder does not hold what
    one of the layouts promises.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"the data folder does not exist: {root}")
    for dataset in DATASETS:
        if dataset.recognises(root):
            rows = dataset.rows(root)
            return Collection(
                name=dataset.NAME,
                base=image_set(dataset.NAME, dataset.BASE_CLASSES, rows),
                rare=image_set(dataset.NAME, dataset.RARE_CLASSES, rows),
            )
    raise InputError(
        f"no dataset recognised in {root}; expected "
        + ", or ".join(f"{dataset.LAYOUT} ({dataset.NAME})" for dataset in DATASETS)
    )
