"""Data: base and rare images of a data folder, few-shot tasks, pseudo labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError, listed

from . import isic2018, medmnist, oct, own, papsmear
from .images import ImageSet, image_set

DATASETS = (isic2018, papsmear, oct, medmnist, own)  # the first match wins


@dataclass(frozen=True)
class Collection:
    """A dataset split into D_base (common diseases and normal controls) and D_rare."""

    name: str
    base: ImageSet
    rare: ImageSet


def open_dataset(
    folder: str | Path,
    base_classes: Sequence[str] | None = None,
    rare_classes: Sequence[str] | None = None,
) -> Collection:
    """Open the dataset in `folder` (or file), recognised by its layout.

    `base_classes` and `rare_classes` override the defaults, which only the papers' datasets have.
    Reads names and labels, no pixels. Raises InputError if no layout matches, the data are
    incomplete, or the classes are missing or invalid.
    """
    root = Path(folder)
    if not root.exists():
        raise InputError(f"the data folder does not exist: {root}")
    dataset = _recognise(root)
    try:
        rows = dataset.rows(root)
    except InputError:
        if dataset not in (papsmear, oct) or not base_classes or not rare_classes:
            raise
        dataset, rows = own, own.rows(root)  # own images, with class names that coincide
    available = list(dict.fromkeys(label for _, _, label in rows))
    if base_classes is None and rare_classes is None:
        base_classes, rare_classes = dataset.BASE_CLASSES, dataset.RARE_CLASSES
    known = set(available).issuperset([*(base_classes or ()), *(rare_classes or ())])
    if not base_classes or not rare_classes or not known:
        raise InputError(
            f"{root} has the classes {listed(available, 50)}; choose the common ones with "
            "--base-classes and the rare ones with --rare-classes"
        )
    if len(rare_classes) < 2:
        raise InputError("--rare-classes must name at least 2 classes, got 1")
    chosen = [*base_classes, *rare_classes]
    if duplicates := [name for name in dict.fromkeys(chosen) if chosen.count(name) > 1]:
        raise InputError(f"duplicates in --base-classes and --rare-classes: {listed(duplicates)}")
    name = dataset.NAME or root.resolve().stem
    return Collection(
        name=name,
        base=image_set(name, tuple(base_classes), rows),
        rare=image_set(name, tuple(rare_classes), rows),
    )


def lesion_groups(folder: str | Path) -> dict[str, str]:
    """Return the lesion id of each image id. Raises InputError if the dataset has none."""
    dataset = _recognise(Path(folder))
    if not hasattr(dataset, "lesions"):
        raise InputError(f"--lesion-disjoint requires {isic2018.NAME}; {folder} has no lesion ids")
    return dataset.lesions(Path(folder))


def _recognise(root: Path):
    for dataset in DATASETS:
        if dataset.recognises(root):
            return dataset
    raise InputError(
        f"no dataset recognised in {root}; expected "
        + "; or ".join(f"{d.LAYOUT}{f' ({d.NAME})' if d.NAME else ''}" for d in DATASETS)
    )
