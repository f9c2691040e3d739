"""Tasks T = (S, Q): K support images of each of N rare classes; the query set is all the rest."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError, listed, refusing
from common.files import atomic_write, parse_json

from .images import ImageSet, require_fingerprint

TASK_FILE = "task.json"
FORMAT = 1
# Table 11's split of the rare images: training (where the support comes from), validation, test.
SHARES = (0.7, 0.1)  # and the rest
SPLIT_SEED = 712


@dataclass(frozen=True)
class Task:
    """Which images are the support set; `support_ids[n]` are the K of `classes[n]`, or all that a
    split has for training where `k_shot` is None."""

    classes: tuple[str, ...]
    k_shot: int | None
    seed: int
    support_ids: tuple[tuple[str, ...], ...]
    rare: dict  # the fingerprint of the rare set that the task was drawn from
    excluded_ids: tuple[str, ...] = ()  # in neither support nor query set

    @property
    def n_way(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        left_out = f", {len(self.excluded_ids)} images left out" if self.excluded_ids else ""
        return f"{self.n_way}-way {self.k_shot or 'all'}-shot, seed {self.seed}{left_out}"

    def support(self, rare: ImageSet) -> ImageSet:
        """S: N·K images labelled 0…N−1. Raises InputError if `rare` lacks one of them, or has it in
        another class."""
        class_of = {i: rare.classes[label] for i, label in zip(rare.ids, rare.labels)}
        pairs = [(i, name) for ids, name in zip(self.support_ids, self.classes) for i in ids]
        if moved := [i for i, name in pairs if class_of.get(i, name) != name]:
            raise InputError(f"of another class now than in the support set: {listed(moved)}")
        return rare.take([i for i, _ in pairs], self.classes)

    def query(self, rare: ImageSet) -> ImageSet:
        """Q: every image of the task's classes in `rare` that is not in S, nor left out, labelled
        0…N−1.

        Raises InputError if `rare` lacks a support image: then it is another set, in which the
        same image might go by another id; and if a class would be without a query image.
        """
        apart = {*self.support(rare).ids, *self.excluded_ids}
        query = rare.take(
            [
                i
                for i, label in zip(rare.ids, rare.labels)
                if rare.classes[label] in self.classes and i not in apart
            ],
            self.classes,
        )
        if none := [name for name, count in query.counts().items() if not count]:
            raise InputError(f"no images of {listed(none)} but the support set's")
        return query

    def to_dict(self) -> dict:
        """As plain JSON types; `from_dict` undoes it."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_dict(values: dict) -> "Task":
        """Raises ValueError if `values`, from a file, do not describe a task."""
        if not isinstance(values, dict):
            raise ValueError("a task is expected")
        needed = {"classes", "k_shot", "seed", "support_ids", "rare"}
        if lacking := sorted(needed - values.keys()):
            raise ValueError(f"it lacks {listed(lacking)}")
        if not isinstance(values["support_ids"], list | tuple):
            raise ValueError("the support set is no list")
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
        every = [*(i for ids in task.support_ids for i in ids), *task.excluded_ids]
        if (
            not all(type(number) is int for number in (task.seed, *shots))
            or not task.n_way == len(task.support_ids) == len(set(task.classes)) >= 2
            or not all(0 < len(ids) and len(ids) in shots for ids in task.support_ids)
            or len(every) != len(set(every))
        ):
            raise ValueError(
                f"not {task.k_shot} support images, all different, of each of {task.n_way} classes"
            )
        return task


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("names are expected, in a list")
    return tuple(value)


def draw_task(
    rare: ImageSet,
    n_way: int | None,
    k_shot: int | None,
    seed: int,
    lesions: Mapping[str, str] | None = None,
    rare_split: bool = False,
) -> Task:
    """A random task; the same `seed` gives the same task, and its 3 shots are among its 5.

    `n_way` None takes every rare class. `lesions` says which lesion an image shows: images of the
    support set's lesions are left out of the query set. `rare_split` draws the support from 70 %
    of each class, all of it if `k_shot` is None, and has the query set be another 20 %, the same
    for every seed (Table 11).
    Raises InputError, with what the data could serve, when there are fewer classes, or a class
    would keep no query image; and where `lesions` lacks an image.
    """
    counts = rare.counts()
    have = f"{rare.name} has " + ", ".join(f"{name} {count}" for name, count in counts.items())
    n_way = len(rare.classes) if n_way is None else n_way
    if not 2 <= n_way <= len(rare.classes):
        raise InputError(f"--n_way {n_way} is not possible: {have}; 2 to {len(counts)} would be")
    generator = np.random.default_rng(seed)
    order = [generator.permutation(count) for count in counts.values()]
    chosen = sorted(generator.permutation(len(rare.classes))[:n_way])
    every = [set(range(count)) for count in counts.values()]
    training, test = _split(counts.values()) if rare_split else (every, every)
    most = min(min(len(training[n]), len(every[n]) - 1) for n in chosen)
    if not 1 <= (most if k_shot is None else k_shot) <= most:
        could = f"1 to {most} would be" if most > 0 else "a class in a task needs two images"
        raise InputError(
            f"--k_shot {'all' if k_shot is None else k_shot} is not possible: {have}; {could}"
        )
    support_ids, excluded_ids = [], []
    for label in chosen:
        ids = [i for i, other in zip(rare.ids, rare.labels) if other == label]
        drawn = [row for row in order[label].tolist() if row in training[label]][:k_shot]
        support_ids.append(tuple(ids[row] for row in drawn))
        excluded_ids += [ids[row] for row in every[label] - test[label] - set(drawn)]
    if lesions is not None:
        if missing := [i for i in rare.ids if i not in lesions]:
            raise InputError(f"no lesion is told for {listed(missing)}")
        support = {i for ids in support_ids for i in ids}
        shown = {lesions[i] for i in support}
        excluded_ids += [
            i
            for i, label in zip(rare.ids, rare.labels)
            if label in chosen and lesions[i] in shown and i not in support
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
    """Each class's rows for training and for testing; what is in neither is for validation."""
    generator = np.random.default_rng(SPLIT_SEED)
    training, test = [], []
    for count in counts:
        order = generator.permutation(count).tolist()
        first, last = round(SHARES[0] * count), round(sum(SHARES[:2]) * count)
        training.append(set(order[:first]))
        test.append(set(order[last:]))
    return training, test


def save_task(folder: Path, task: Task, made_by: dict) -> None:
    """Write `task` and what made it to `folder`."""
    contents = {"format": FORMAT, **task.to_dict(), "made_by": made_by}
    with atomic_write(folder / TASK_FILE) as file:
        file.write(json.dumps(contents, indent=1).encode())


def load_task(folder: Path) -> Task:
    """The task in `folder`. Raises InputError if there is none, or it cannot be read."""
    path = folder / TASK_FILE
    if not path.is_file():
        raise InputError(f"no task here: {path}; generate_pseudo.py writes it to its --savedir")
    with refusing(f"{path} is not a task file"):
        return Task.from_dict(parse_json(path.read_bytes(), FORMAT))
