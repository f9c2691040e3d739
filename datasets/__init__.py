"""What the method is fed: the base and rare images of a data folder, tasks, pseudo labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError, listed

from . import isic2018, medmnist, oct, own, papsmear
from .images import ImageSet, image_set

DATASETS = (isic2018, papsmear, oct, medmnist, own)  # the first that recognises a folder has it


@dataclass(frozen=True)
class Collection:
    """D_base, the common diseases and normal controls, and D_rare."""

    name: str
    base: ImageSet
    rare: ImageSet


def open_dataset(
    folder: str | Path,
    base_classes: Sequence[str] | None = None,
    rare_classes: Sequence[str] | None = None,
) -> Collection:
    """The dataset in `folder` (or file), recognised by its layout; no preparation is needed.

    The papers' sets know their base and rare classes; given here, they are these instead. Reads
    names and labels, no pixels. Raises InputError where the folder does not hold what one of the
    layouts promises, or not these classes.
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
        dataset, rows = own, own.rows(root)  # whose classes happen to be called like one of theirs
    there = list(dict.fromkeys(label for _, _, label in rows))
    if base_classes is None and rare_classes is None:
        base_classes, rare_classes = dataset.BASE_CLASSES, dataset.RARE_CLASSES
    known = set(there).issuperset([*(base_classes or ()), *(rare_classes or ())])
    if not base_classes or not rare_classes or not known:
        raise InputError(
            f"{root} has the classes {listed(there, 50)}; say with --base-classes and "
            "--rare-classes which of them are common and which are rare"
        )
    if len(rare_classes) < 2:
        raise InputError("--rare-classes names one class; two are needed, to be told apart")
    chosen = [*base_classes, *rare_classes]
    if twice := [name for name in dict.fromkeys(chosen) if chosen.count(name) > 1]:
        raise InputError(f"--base-classes and --rare-classes name {listed(twice)} more than once")
    name = dataset.NAME or root.resolve().stem
    return Collection(
        name=name,
        base=image_set(name, tuple(base_classes), rows),
        rare=image_set(name, tuple(rare_classes), rows),
    )


def lesion_groups(folder: str | Path) -> dict[str, str]:
    """The lesion that each image shows, by image id. Raises InputError where that is not known."""
    dataset = _recognise(Path(folder))
    if not hasattr(dataset, "lesions"):
        raise InputError(f"--lesion-disjoint is for {isic2018.NAME}; {folder} tells no lesions")
    return dataset.lesions(Path(folder))


def _recognise(root: Path):
    for dataset in DATASETS:
        if dataset.recognises(root):
            return dataset
    raise InputError(
        f"no dataset recognised in {root}; expected "
        + "; or ".join(f"{d.LAYOUT}{f' ({d.NAME})' if d.NAME else ''}" for d in DATASETS)
    )
