"""Data: base and rare images of a data folder, few-shot tasks, pseudo labels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from common.errors import InputError, listed
from common.names import clean, folded, nearest, printable, quoted

from . import isic2018, medmnist, oct, own, papsmear
from .images import ImageSet, image_set
from .listing import NAMED, OUTSIDE, Listing, found, summary

DATASETS = (isic2018, papsmear, oct, medmnist, own)  # the first match wins


@dataclass(frozen=True)
class Collection:
    """A dataset split into D_base (common diseases and normal controls) and D_rare.

    `others` are the images of the classes not used; `passed_over` has the names of files and
    folders that were not taken, by reason; `notes` say how the rest was read; `groups` the patient
    or lesion of each image id, where known; `folders` the first folder below the class folder.
    """

    name: str
    base: ImageSet
    rare: ImageSet
    others: ImageSet
    passed_over: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def without(self, ids: Iterable[str], reason: str, names: Iterable[str] = ()) -> "Collection":
        """Return the collection without the images `ids`, which are passed over for `reason`, under
        their ids or `names`."""
        dropped = dict.fromkeys(ids)
        if not dropped:
            return self
        base, rare = (s.take(i for i in s.ids if i not in dropped) for s in (self.base, self.rare))
        named = (*self.passed_over.get(reason, ()), *map(printable, names or dropped))
        return replace(self, base=base, rare=rare, passed_over=self.passed_over | {reason: named})

    def _about(self) -> tuple:
        """Return the arguments of `found` and `summary`."""
        sets = {"base": self.base, "rare": self.rare, "not used": self.others}
        counts = {part: images.counts() for part, images in sets.items()}
        return self.name, counts, self.passed_over, self._notes()

    def _notes(self) -> list[str]:
        ids = (*self.base.ids, *self.rare.ids)
        if not (known := [self.groups[i] for i in ids if i in self.groups]):
            folders = len({self.folders[i] for i in ids if i in self.folders})
            hint = f"images lie in {folders} folders within their classes; where a task is drawn, "
            hint += "--group-folders takes them as patients"
            return [*self.notes, *([hint] if folders else ())]
        groups = f"{len(set(known))} groups (patients, lesions) of {len(known)} images"
        forms: dict[str, list[str]] = {}
        for group in dict.fromkeys(known):
            forms.setdefault(folded(group), []).append(group)
        near = [" = ".join(map(printable, same)) + "?" for same in forms.values() if len(same) > 1]
        misses = f"groups that differ in capitals or spaces alone: {listed(near, NAMED)}"
        return [groups, *([misses] if near else ()), *self.notes]

    def to_dict(self) -> dict:
        """Return what was found as JSON types, for a run's files."""
        return found(*self._about())

    def summary(self, quiet: bool = False) -> str:
        """Return what was found as a block of lines, or if `quiet` as a line."""
        return summary(*self._about(), quiet)


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
    InputError if no layout matches, the data are incomplete, the classes are missing or invalid, or
    another class differs from one of them in capitals alone.
    """
    root = Path(folder)
    if not root.exists():
        raise InputError(f"the data folder does not exist: {root}")
    dataset = next((dataset for dataset in DATASETS if dataset.recognises(root)), None)
    if dataset is None:
        layouts = (f"{d.LAYOUT}{f' ({d.NAME})' if d.NAME else ''}" for d in DATASETS)
        raise InputError(f"no dataset recognised in {root}; expected {'; or '.join(layouts)}")
    try:
        listing = _find(dataset, root, group_column)
    except InputError:
        if dataset not in (papsmear, oct) or not base_classes or not rare_classes:
            raise
        listing = _find(own, root, group_column)  # own images, with class names that coincide
        if dataset is papsmear:
            papsmear.pass_over_segmentations(listing)
        dataset = own
    available = Counter(row.label for row in listing.rows)
    if base_classes is None and rare_classes is None:
        base_classes, rare_classes = dataset.BASE_CLASSES, dataset.RARE_CLASSES
    base_classes, rare_classes = (
        tuple(map(clean, names or ())) for names in (base_classes, rare_classes)
    )
    _check_classes(root, listing, available, base_classes, rare_classes)
    name = dataset.NAME or printable(root.resolve().stem)
    others = tuple(label for label in available if label not in (*base_classes, *rare_classes))
    listing.note_folders_of_others(available)
    return Collection(
        name,
        *(image_set(name, part, listing.rows) for part in (base_classes, rare_classes, others)),
        passed_over={reason: tuple(names) for reason, names in listing.passed_over.items()},
        notes=tuple(listing.notes),
        groups={row.id: row.group for row in listing.rows if row.group is not None},
        folders={row.id: clean(row.folder) for row in listing.rows if row.folder is not None},
    )


def _check_classes(
    root: Path,
    listing: Listing,
    available: dict[str, int],
    base_classes: tuple[str, ...],
    rare_classes: tuple[str, ...],
) -> None:
    """Raise InputError if these are not two or more classes that `root` has, or one of its others
    is a near miss of one."""
    chosen = [*base_classes, *rare_classes]
    choose = (
        f"{root} has the classes {listed(map(quoted, available), 50)}; choose the common ones with "
        "--base-classes and the rare ones with --rare-classes"
    )
    if absent := [name for name in chosen if name not in available]:
        empty = {clean(name[:-1]): name for name in listing.passed_over.get(own.EMPTY, ())}
        for folder in (empty[name] for name in absent if name in empty):
            others = [n for names in listing.passed_over.values() for n in names if n != folder]
            inside = listed(name for name in others if name.startswith(folder))
            what = f"holds no image, only {inside}" if inside else "is empty"
            raise InputError(f"the class folder {root / folder} {what}")
        hints = (f"{quoted(name)}{_hint(name, listing, available)}" for name in absent)
        beside = listed(root / name for name in listing.passed_over.get(own.BESIDE, ()))
        table = f"; to read {beside} instead of the folders, pass it as DATA" if beside else ""
        raise InputError(f"{root} has no class {listed(hints)}; {choose}{table}")
    if not base_classes or not rare_classes:
        raise InputError(choose)
    if len(rare_classes) < 2:
        raise InputError("--rare-classes must name at least 2 classes, got 1")
    if duplicates := [name for name in dict.fromkeys(chosen) if chosen.count(name) > 1]:
        raise InputError("duplicates in --base-classes and --rare-classes: "
                         + listed(map(quoted, duplicates))
                         + "; name both, each class in one of them")  # fmt: skip
    named = {folded(name): name for name in chosen}
    outside = [name[:-1] for name in listing.passed_over.get(OUTSIDE, ()) if name[-1] == "/"]
    others = {**{name.rpartition("/")[2]: 0 for name in outside}, **available}
    misses = [
        f"{quoted(name)} ({f'{n} images' if n else 'folder'}; beside {quoted(named[folded(name)])})"
        for name, n in others.items()
        if name not in chosen and folded(name) in named
    ]
    if misses:
        raise InputError(
            f"{root} has classes that differ from those named in capitals or spaces alone: "
            f"{listed(misses)}; rename them, or name both spellings"
        )


def _find(dataset: ModuleType, root: Path, group_column: str | None) -> Listing:
    if dataset is own:
        return own.find(root, group_column)
    if group_column:
        raise own.no_groups(root, group_column)
    return dataset.find(root)


def _hint(name: str, listing: Listing, available: Iterable[str]) -> str:
    """Return where an absent class may be: in a folder inside another, or the nearest name."""
    for row in listing.rows:
        outer, *inner = row.id.split("/")[:-1] or [""]
        if name in map(clean, inner):
            return f" (a folder inside {quoted(outer)})"
    near = nearest(name, available)
    return f" (nearest: {quoted(near)})" if near else ""
