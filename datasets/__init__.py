"""Data: base and rare images of a data folder, few-shot tasks, pseudo labels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from common.errors import InputError, listed

from . import isic2018, medmnist, oct, own, papsmear
from .images import ImageSet, image_set
from .listing import Listing

NAMED = 3  # files passed over that are named
DATASETS = (isic2018, papsmear, oct, medmnist, own)  # the first match wins


@dataclass(frozen=True)
class Collection:
    """A dataset split into D_base (common diseases and normal controls) and D_rare.

    `others` are the images of the classes not used; `passed_over` has the names of files and
    folders that were not taken, by reason; `groups` the patient or lesion of each image id, where
    known; `notes` are further lines of the summary.
    """

    name: str
    base: ImageSet
    rare: ImageSet
    others: ImageSet
    passed_over: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def unused(self) -> dict[str, int]:
        """The number of images of each class that is not used."""
        return self.others.counts()

    def without(self, ids: Iterable[str], reason: str, names: Iterable[str] = ()) -> "Collection":
        """Return the collection without the images `ids`, which are passed over for `reason`, under
        their ids or `names`."""
        ids = tuple(ids)
        if not ids:
            return self
        dropped = set(ids)
        base, rare = (s.take(i for i in s.ids if i not in dropped) for s in (self.base, self.rare))
        named = self.passed_over.get(reason, ()) + (tuple(names) or ids)
        return replace(self, base=base, rare=rare, passed_over=self.passed_over | {reason: named})

    def to_dict(self) -> dict:
        """Return what was found as JSON types, for a run's files."""
        return {
            "dataset": self.name,
            "base": self.base.counts(),
            "rare": self.rare.counts(),
            "not_used": self.unused,
            "passed_over": {
                reason: {"files": len(names), "first": list(names[:NAMED])}
                for reason, names in self.passed_over.items()
            },
            "groups": len(self._groups()),
            "notes": list(self.notes),
        }

    def _groups(self) -> set[str]:
        return {self.groups[i] for i in (*self.base.ids, *self.rare.ids) if i in self.groups}

    def summary(self, quiet: bool = False) -> str:
        """Return what was found as a block of lines, or if `quiet` as a line."""
        parts = {"base": self.base.counts(), "rare": self.rare.counts(), "not used": self.unused}
        numbers = {part: sum(counts.values()) for part, counts in parts.items()}
        numbers["passed over"] = sum(map(len, self.passed_over.values()))
        numbers = {part: number for part, number in numbers.items() if number}
        if quiet:
            return f"{self.name}: " + ", ".join(f"{n} {part}" for part, n in numbers.items())
        lines = [f"{self.name}:"]
        for part, number in numbers.items():
            counts = ", ".join(f"{name} {n}" for name, n in parts.get(part, {}).items())
            lines.append(f"  {part:11} {number:>7}  {counts}".rstrip())
        for reason, names in self.passed_over.items():
            lines.append(f"    {len(names)} {reason}: {listed(names, NAMED)}")
        if groups := self._groups():
            known = sum(i in self.groups for i in (*self.base.ids, *self.rare.ids))
            lines.append(f"  {'groups':11} {len(groups):>7}  patients or lesions of {known} images")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def open_dataset(
    folder: str | Path,
    base_classes: Sequence[str] | None = None,
    rare_classes: Sequence[str] | None = None,
    group_column: str | None = None,
) -> Collection:
    """Open the dataset in `folder` (or file), recognised by its layout.

    `base_classes` and `rare_classes` override the defaults, which only the papers' datasets have.
    `group_column` names the column of a CSV file of images that has their groups, by default
    "group". Reads names and labels, no pixels, and leaves copies in (`without_copies`). Raises
    InputError if no layout matches, the data are incomplete, or the classes are missing or invalid.
    """
    root = Path(folder)
    if not root.exists():
        raise InputError(f"the data folder does not exist: {root}")
    dataset = _recognise(root)
    try:
        listing = _find(dataset, root, group_column)
    except InputError:
        if dataset not in (papsmear, oct) or not base_classes or not rare_classes:
            raise
        dataset, listing = (
            own,
            _find(own, root, group_column),
        )  # own images, with class names that coincide
    available = Counter(row.label for row in listing.rows)
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
        base=image_set(name, tuple(base_classes), listing.rows),
        rare=image_set(name, tuple(rare_classes), listing.rows),
        others=image_set(name, tuple(c for c in available if c not in chosen), listing.rows),
        passed_over={reason: tuple(names) for reason, names in listing.passed_over.items()},
        groups={row.id: row.group for row in listing.rows if row.group is not None},
    )


def _find(dataset: ModuleType, root: Path, group_column: str | None) -> Listing:
    if dataset is own and root.is_file():
        return own.find(root, group_column)
    if group_column:
        raise InputError(
            f"--group-column {group_column}: {root} is not a CSV file of images; pass a CSV file "
            "of image ids and groups as --groups"
        )
    return dataset.find(root)


def _recognise(root: Path):
    for dataset in DATASETS:
        if dataset.recognises(root):
            return dataset
    raise InputError(
        f"no dataset recognised in {root}; expected "
        + "; or ".join(f"{d.LAYOUT}{f' ({d.NAME})' if d.NAME else ''}" for d in DATASETS)
    )
