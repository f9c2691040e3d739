"""N-way K-shot tasks T = (S, Q): S holds K images of each of N rare classes, Q all others."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError, listed, refusing
from common.files import atomic_write, parse_json

from .images import ImageSet, require_fingerprint, same_images

TASK_FILE = "task.json"
FORMAT = 1
# Table 11's split of the rare images: training (source of the support set), validation, test.
SHARES = (0.7, 0.1)  # the test set is the rest
SPLIT_SEED = 712


@dataclass(frozen=True)
class Task:
    """A few-shot task, defined by its support set.

    `support_ids[n]` are the K images of `classes[n]`; with `k_shot` None, all training images of
    the rare split.
    """

    classes: tuple[str, ...]
    k_shot: int | None
    seed: int
    support_ids: tuple[tuple[str, ...], ...]
    rare: dict  # fingerprint of the rare set
    excluded_ids: tuple[str, ...] = ()  # in neither support nor query set

    def __eq__(self, other: object) -> bool:
        """Compare tasks; the name of the folder that the images came from does not matter."""
        if not isinstance(other, Task):
            return NotImplemented
        own, others = ({**vars(task), "rare": None} for task in (self, other))
        return own == others and same_images(self.rare, other.rare)

    @property
    def n_way(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        excluded = f", {len(self.excluded_ids)} images excluded" if self.excluded_ids else ""
        return f"{self.n_way}-way {self.k_shot or 'all'}-shot, seed {self.seed}{excluded}"

    def support(self, rare: ImageSet) -> ImageSet:
        """Return S: N·K images labelled 0…N−1.

        Raises InputError if `rare` lacks one of them or has it in another class.
        """
        class_of = {i: rare.classes[label] for i, label in zip(rare.ids, rare.labels)}
        pairs = [(i, name) for ids, name in zip(self.support_ids, self.classes) for i in ids]
        if moved := [i for i, name in pairs if class_of.get(i, name) != name]:
            raise InputError(f"support images that have another class in the data: {listed(moved)}")
        return rare.take([i for i, _ in pairs], self.classes)

    def query(self, rare: ImageSet) -> ImageSet:
        """Return Q: all images of the task's classes neither in S nor excluded, labelled 0…N−1.

        Raises InputError if `rare` lacks a support image (in another set the same image may have
        another id), or a class has no query image.
        """
        used = {*self.support(rare).ids, *self.excluded_ids}
        query = rare.take(
            [
                i
                for i, label in zip(rare.ids, rare.labels)
                if rare.classes[label] in self.classes and i not in used
            ],
            self.classes,
        )
        if empty := [name for name, count in query.counts().items() if not count]:
            raise InputError(f"no query images of {listed(empty)}")
        return query

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
        )
        shots = {task.k_shot} if task.k_shot is not None else set(map(len, task.support_ids))
        all_ids = [*(i for ids in task.support_ids for i in ids), *task.excluded_ids]
        if (
            not all(type(number) is int for number in (task.seed, *shots))
            or not task.n_way == len(task.support_ids) == len(set(task.classes)) >= 2
            or not all(0 < len(ids) and len(ids) in shots for ids in task.support_ids)
            or len(all_ids) != len(set(all_ids))
        ):
            raise ValueError(
                f"expected {task.k_shot} distinct support images for each of {task.n_way} classes"
            )
        return task


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of strings")
    return tuple(value)


def draw_task(
    rare: ImageSet,
    n_way: int | None,
    k_shot: int | None,
    seed: int,
    lesions: Mapping[str, str] | None = None,
    rare_split: bool = False,
) -> Task:
    """Draw a random task. With the same `seed`, fewer shots are a subset of more shots.

    `n_way` None uses all rare classes. `lesions` maps image ids to lesion ids: images of the
    support set's lesions are excluded from the query set. `rare_split` draws the support set from
    70 % of each class (all of it if `k_shot` is None) and uses another 20 %, the same for every
    seed, as the query set (Table 11).
    Raises InputError, with the valid range, if there are too few classes or images, and if
    `lesions` lacks an image.
    """
    counts = rare.counts()
    sizes = f"{rare.name} has " + ", ".join(f"{name} {count}" for name, count in counts.items())
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
        support_ids.append(tuple(ids[row] for row in drawn))
        excluded_ids += [ids[row] for row in everything[label] - test[label] - set(drawn)]
    if lesions is not None:
        if missing := [i for i in rare.ids if i not in lesions]:
            raise InputError(f"missing lesion ids of {listed(missing)}")
        support = {i for ids in support_ids for i in ids}
        support_lesions = {lesions[i] for i in support}
        excluded_ids += [
            i
            for i, label in zip(rare.ids, rare.labels)
            if label in chosen and lesions[i] in support_lesions and i not in support
        ]
    return Task(
        classes=tuple(rare.classes[label] for label in chosen),
        k_shot=k_shot,
        seed=seed,
        support_ids=tuple(support_ids),
        rare=rare.fingerprint(),
        excluded_ids=tuple(sorted(set(excluded_ids))),
    )


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
    with atomic_write(folder / TASK_FILE) as file:
        file.write(json.dumps(contents, indent=1).encode())


def load_task(folder: Path) -> Task:
    """Load the task in `folder`. Raises InputError if it is missing or invalid."""
    path = folder / TASK_FILE
    if not path.is_file():
        raise InputError(f"no task at {path}; create it with generate_pseudo.py --savedir")
    with refusing(f"task file {path} is invalid"):
        return Task.from_dict(parse_json(path.read_bytes(), FORMAT))
