"""N-way K-shot tasks T = (S, Q): S holds K images of each of N rare classes, Q all others."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError, listed, refusing
from common.files import parse_json, write_utf8
from common.names import counted, quoted

from .images import ImageSet, require_fingerprint, same_images
from .isic2018 import GROUPINGS

TASK_FILE = "task.json"
FORMAT = 1
# Table 11's split of the rare images: training (source of the support set), validation, test.
SHARES = (0.7, 0.1)  # the test set is the rest
SPLIT_SEED = 712


@dataclass(frozen=True)
class Task:
    """A few-shot task, defined by its support set.

    `support_ids[n]` are the K images of `classes[n]`; with `k_shot` None, all training images of
    the rare split or, with `seed` None as well, images that the user has chosen.
    """

    classes: tuple[str, ...]
    k_shot: int | None
    seed: int | None
    support_ids: tuple[tuple[str, ...], ...]
    rare: dict  # fingerprint of the rare set
    excluded_ids: tuple[str, ...] = ()  # in neither support nor query set
    contents: tuple[str, ...] = ()  # digests of the support images, in order; none if not recorded
    group_disjoint: bool = False  # other images of the support set's groups are excluded

    def __eq__(self, other: object) -> bool:
        """Compare tasks by their images; what else is recorded of those does not matter."""
        if not isinstance(other, Task):
            return NotImplemented
        notes = dict.fromkeys(("rare", "contents", "group_disjoint"))
        own, others = ({**vars(task), **notes} for task in (self, other))
        return own == others and same_images(self.rare, other.rare)

    @property
    def n_way(self) -> int:
        return len(self.classes)

    @property
    def chosen(self) -> bool:
        """Whether the support set was chosen, not drawn."""
        return self.seed is None

    @property
    def shots(self) -> str:
        """The number of support images of a class, for titles."""
        return "chosen" if self.chosen else f"{self.k_shot or 'all'}-shot"

    @property
    def name(self) -> str:
        """The task as a part of a file's name."""
        shots = "chosen" if self.chosen else f"{self.k_shot or 'all'}shot_seed{self.seed}"
        return f"{self.n_way}way_{shots}"

    def __str__(self) -> str:
        excluded = f", {len(self.excluded_ids)} images excluded" if self.excluded_ids else ""
        if self.chosen:
            numbers = counted(self.support_counts())
            return f"{self.n_way}-way, support set chosen, not drawn ({numbers}){excluded}"
        return f"{self.n_way}-way {self.shots}, seed {self.seed}{excluded}"

    def support_counts(self) -> dict[str, int]:
        """Return the number of support images of each class."""
        return dict(zip(self.classes, map(len, self.support_ids)))

    def same_support(self, other: "Task") -> bool:
        """Return whether another task has the same support images of the same classes."""
        own, others = (dict(zip(t.classes, map(set, t.support_ids))) for t in (self, other))
        return own == others

    def require_classes(self, rare: ImageSet) -> None:
        """Raise InputError if a class of the task is not one of the rare classes."""
        if absent := [name for name in self.classes if name not in rare.classes]:
            raise InputError(
                f"the task has the class {listed(map(quoted, absent))}, but --rare-classes are "
                f"{listed(map(quoted, rare.classes))}"
            )

    def support(self, rare: ImageSet) -> ImageSet:
        """Return S: N·K images labelled 0…N−1.

        Raises InputError if `rare` lacks one of them or has it in another class.
        """
        self.require_classes(rare)
        class_of = {row.id: row.label for row in rare.rows()}
        pairs = [(i, name) for ids, name in zip(self.support_ids, self.classes) for i in ids]
        there = counted_ids(rare, [i for i, _ in pairs])
        if len(set(there)) == len(there):  # else two of them are one image
            pairs = [(i, name) for i, (_, name) in zip(there, pairs)]
        if moved := [i for i, name in pairs if class_of.get(i, name) != name]:
            raise InputError(f"support images that have another class in the data: {listed(moved)}")
        return rare.take([i for i, _ in pairs], self.classes)

    def query(
        self, rare: ImageSet, complete: bool = True,
        advice: str = "fewer --k-shot or another --seed leave some",
    ) -> ImageSet:  # fmt: skip
        """Return Q: all images of the task's classes neither in S nor excluded, labelled 0…N−1.

        Raises InputError if `rare` lacks a support image (in another set the same image may have
        another id), or, if it has to be `complete`, with `advice`, a class has no query image.
        """
        used = {*self.support(rare).ids, *counted_ids(rare, self.excluded_ids)}
        rows = (row for row in rare.rows() if row.label in self.classes and row.id not in used)
        query = rare.take((row.id for row in rows), self.classes)
        empty = [name for name, count in query.counts().items() if not count]
        if empty and complete:
            why = ", with those of the support set's groups (patients)" * self.group_disjoint
            advice = "only --predict can use it" if self.chosen else advice
            raise InputError(
                f"the task ({self}{why}) has no query images of {listed(map(quoted, empty))}: "
                f"{advice}"
            )
        return query

    def shared(self, rare: ImageSet, groups: Mapping[str, str]) -> dict:
        """Return how many query images share something with the support set.

        `copies`: its content, which only --allow-duplicates lets happen; `groups`: a group, None
        if unknown: no image of the task has one in `groups`, nor was the task drawn from these
        images by groups; `without_group`: images of the task without a group.
        """
        support, query = self.support(rare).ids, self.query(rare, complete=False).ids
        contents = {rare.copies.get(i, i) for i in support}
        known = {groups[i] for i in support if i in groups}
        without = sum(i not in groups for i in (*support, *query))
        sharing: int | None = sum(groups.get(i) in known for i in query)
        if without == len(support) + len(query):  # `groups` has none of them
            excluded = self.group_disjoint and same_images(rare.fingerprint(), self.rare)
            sharing, without = (0, 0) if excluded else (None, without)
        return {
            "copies": sum(rare.copies.get(i, i) in contents for i in query),
            "groups": sharing,
            "without_group": without,
        }

    def to_dict(self) -> dict:
        """Return the task as JSON types, the inverse of `from_dict`."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_dict(values: dict) -> "Task":
        """Return the task that `values`, from a file, describe. Raises ValueError if invalid."""
        if not isinstance(values, dict):
            raise ValueError("expected a dictionary")
        required = {"classes", "k_shot", "seed", "support_ids", "rare"}
        if missing := sorted(required - values.keys()):
            raise ValueError(f"missing {listed(missing)}")
        if not isinstance(values["support_ids"], list | tuple):
            raise ValueError("support_ids must be a list")
        require_fingerprint(values["rare"])
        task = Task(
            classes=_names(values["classes"]),
            k_shot=values["k_shot"],
            seed=values["seed"],
            support_ids=tuple(_names(ids) for ids in values["support_ids"]),
            rare=values["rare"],
            excluded_ids=_names(values.get("excluded_ids", ())),
            contents=_names(values.get("contents", ())),
            group_disjoint=values.get("group_disjoint", False) is True,
        )
        shots = {task.k_shot} if task.k_shot is not None else set(map(len, task.support_ids))
        all_ids = [*(i for ids in task.support_ids for i in ids), *task.excluded_ids]
        seeds = set() if task.chosen and task.k_shot is None else {task.seed}
        if (
            not all(type(number) is int for number in (*seeds, *shots))
            or not task.n_way == len(task.support_ids) == len(set(task.classes)) >= 2
            or not all(0 < len(ids) and len(ids) in shots for ids in task.support_ids)
            or len(all_ids) != len(set(all_ids))
            or len(task.contents) not in (0, sum(map(len, task.support_ids)))
        ):
            raise ValueError(
                f"expected {task.k_shot} distinct support images for each of {task.n_way} classes"
            )
        return task


def counted_ids(rare: ImageSet, ids: Sequence[str]) -> list[str]:
    """Return `ids` with the copy that counts in `rare` in place of an image that is left out for it
    since a task was drawn."""
    left_out = rare.copies.keys() - set(rare.ids)
    return [rare.copies[i] if i in left_out else i for i in ids]


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of strings")
    return tuple(value)


def draw_task(
    rare: ImageSet,
    n_way: int | None,
    k_shot: int | None,
    seed: int,
    groups: Mapping[str, str] | None = None,
    rare_split: bool = False,
) -> Task:
    """Draw a random task. With the same `seed`, fewer shots are a subset of more shots.

    `n_way` None uses all rare classes. `groups` maps image ids to patients or lesions: other
    images of the support set's groups are excluded from the query set. `rare_split` draws the
    support set from 70 % of each class (all of it if `k_shot` is None) and uses another 20 %, the
    same for every seed, as the query set (Table 11).
    Raises InputError, with the valid range, if there are too few classes or images, and if
    `groups` lacks an image.
    """
    counts = rare.counts()
    sizes = f"{rare.name} has {counted(counts)}"
    n_way = len(rare.classes) if n_way is None else n_way
    if not 2 <= n_way <= len(rare.classes):
        raise InputError(f"--n-way must be in [2, {len(counts)}], got {n_way}: {sizes}")
    generator = np.random.default_rng(seed)
    order = [generator.permutation(count) for count in counts.values()]
    chosen = sorted(generator.permutation(len(rare.classes))[:n_way])
    everything = [set(range(count)) for count in counts.values()]
    training, test = _split(counts.values()) if rare_split else (everything, everything)
    most = min(min(len(training[n]), len(everything[n]) - 1) for n in chosen)
    if not 1 <= (most if k_shot is None else k_shot) <= most:
        if most < 1:
            raise InputError(f"each class of a task needs at least 2 images: {sizes}")
        raise InputError(f"--k-shot must be in [1, {most}], got {k_shot}: {sizes}")
    support_ids, excluded_ids = [], []
    for label in chosen:
        ids = [i for i, other in zip(rare.ids, rare.labels) if other == label]
        drawn = [row for row in order[label].tolist() if row in training[label]][:k_shot]
        support_ids.append([ids[row] for row in drawn])
        excluded_ids += [ids[row] for row in everything[label] - test[label] - set(drawn)]
    classes = [rare.classes[label] for label in chosen]
    return _task(rare, classes, k_shot, seed, support_ids, excluded_ids, groups)


def choose_task(
    rare: ImageSet, support: Mapping[str, Iterable[str]], groups: Mapping[str, str] | None = None
) -> Task:
    """Return the task whose `support` set, image ids by class, was chosen.

    Its classes are those of `support`, in the order of `rare`; they may have different numbers of
    images, and no others. `groups`: as for `draw_task`. Raises InputError if there are fewer than 2
    classes, an image is not one of its class, or `groups` lacks an image.
    """
    classes = [name for name in rare.classes if name in support]
    if len(classes) < 2 or len(classes) < len(support):
        raise InputError(
            f"a support set needs images of at least 2 of the rare classes "
            f"{listed(map(quoted, rare.classes))}, got {listed(map(quoted, support)) or 'none'}"
        )
    task = _task(rare, classes, None, None, [support[name] for name in classes], [], groups)
    task.support(rare)
    return task


def _task(
    rare: ImageSet,
    classes: Sequence[str],
    k_shot: int | None,
    seed: int | None,
    support_ids: Iterable[Iterable[str]],
    excluded_ids: Iterable[str],
    groups: Mapping[str, str] | None,
) -> Task:
    """Return the task; with `groups`, it also excludes the images of its classes that share a group
    with the support set, and are not in it."""
    support_ids = tuple(map(tuple, support_ids))
    excluded = {*excluded_ids}
    if groups is not None:
        if missing := [i for i in rare.ids if i not in groups]:
            raise InputError(
                "--group-disjoint needs the group (patient, lesion) of every rare image; "
                f"{len(missing)} of {len(rare)} have none: {listed(missing, 3)}; give groups as a "
                "column group of a CSV file of images, as --groups FILE with the columns "
                "image,group, as folders within the classes with --group-folders, or for isic2018 "
                f"as {GROUPINGS}"
            )
        support = {i for ids in support_ids for i in ids}
        known = {groups.get(i) for i in support}
        rows = (row for row in rare.rows() if row.label in classes and row.id not in support)
        excluded |= {row.id for row in rows if groups[row.id] in known}
    return Task(
        tuple(classes), k_shot, seed, support_ids, rare.fingerprint(), tuple(sorted(excluded)),
        group_disjoint=groups is not None,
    )  # fmt: skip


def _split(counts: Iterable[int]) -> tuple[list[set[int]], list[set[int]]]:
    """Split each class's rows into training and test; the remaining rows are for validation."""
    generator = np.random.default_rng(SPLIT_SEED)
    training, test = [], []
    for count in counts:
        order = generator.permutation(count).tolist()
        training_end, test_start = round(SHARES[0] * count), round(sum(SHARES[:2]) * count)
        training.append(set(order[:training_end]))
        test.append(set(order[test_start:]))
    return training, test


def save_task(folder: Path, task: Task, made_by: dict) -> None:
    """Save `task` and its provenance `made_by` to `folder`."""
    contents = {"format": FORMAT, **task.to_dict(), "made_by": made_by}
    write_utf8(folder / TASK_FILE, json.dumps(contents, indent=1))


def load_task(folder: Path) -> Task:
    """Load the task in `folder`. Raises InputError if it is missing or invalid."""
    path = folder / TASK_FILE
    if not path.is_file():
        raise InputError(f"no task at {path}; create it with generate_pseudo.py --savedir")
    with refusing(f"task file {path} is invalid"):
        return Task.from_dict(parse_json(path.read_bytes(), FORMAT))
