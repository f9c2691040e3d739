"""Tasks T = (S, Q): K support images of each of N rare classes; the query set is all the rest."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .files import InputError, atomic_write, listed
from .images import ImageSet

TASK_FILE = "task.json"


@dataclass(frozen=True)
class Task:
    """Which images are the support set; `support_ids[n]` are the K of `classes[n]`."""

    classes: tuple[str, ...]
    k_shot: int
    seed: int
    support_ids: tuple[tuple[str, ...], ...]
    rare: dict  # the fingerprint of the rare set that the task was drawn from

    @property
    def n_way(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        return f"{self.n_way}-way {self.k_shot}-shot, seed {self.seed}"

    def support(self, rare: ImageSet) -> ImageSet:
        """S: N·K images labelled 0…N−1. Raises InputError if `rare` lacks one of them."""
        return rare.take([i for ids in self.support_ids for i in ids], self.classes)

    def query(self, rare: ImageSet) -> ImageSet:
        """Q: every image of the task's classes in `rare` that is not in S, labelled 0…N−1.

        Raises InputError if `rare` lacks a support image: then it is another set, in which the
        same image might go by another id; and if a class would be without a query image.
        """
        support = set(self.support(rare).ids)
        query = rare.take(
            [
                i
                for i, label in zip(rare.ids, rare.labels)
                if rare.classes[label] in self.classes and i not in support
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
        """Raises KeyError, TypeError or ValueError if `values` do not describe a task."""
        task = Task(
            classes=tuple(values["classes"]),
            k_shot=int(values["k_shot"]),
            seed=int(values["seed"]),
            support_ids=tuple(tuple(ids) for ids in values["support_ids"]),
            rare=dict(values["rare"]),
        )
        if [len(ids) for ids in task.support_ids] != [task.k_shot] * task.n_way:
            raise ValueError(f"not {task.k_shot} support images for each of {task.n_way} classes")
        return task


def draw_task(rare: ImageSet, n_way: int | None, k_shot: int, seed: int) -> Task:
    """A random task; the same `seed` gives the same task, and its 3 shots are among its 5.

    `n_way` None takes every rare class. Raises InputError, with what the data could serve, when
    there are fewer classes, or a class would keep no query image.
    """
    counts = rare.counts()
    have = f"{rare.name} has " + ", ".join(f"{name} {count}" for name, count in counts.items())
    n_way = len(rare.classes) if n_way is None else n_way
    if not 2 <= n_way <= len(rare.classes):
        raise InputError(f"--n_way {n_way} is not possible: {have}; 2 to {len(counts)} would be")
    generator = np.random.default_rng(seed)
    order = [generator.permutation(count) for count in counts.values()]
    chosen = sorted(generator.permutation(len(rare.classes))[:n_way])
    most = min(len(order[label]) for label in chosen) - 1
    if not 1 <= k_shot <= most:
        could = f"1 to {most} would be" if most > 0 else "a class in a task needs two images"
        raise InputError(f"--k_shot {k_shot} is not possible: {have}; {could}")
    support_ids = []
    for label in chosen:
        ids = [i for i, other in zip(rare.ids, rare.labels) if other == label]
        support_ids.append(tuple(ids[row] for row in order[label][:k_shot]))
    return Task(
        classes=tuple(rare.classes[label] for label in chosen),
        k_shot=k_shot,
        seed=seed,
        support_ids=tuple(support_ids),
        rare=rare.fingerprint(),
    )


def save_task(folder: Path, task: Task, made_by: dict) -> None:
    """Write `task` and what made it to `folder`."""
    with atomic_write(folder / TASK_FILE) as file:
        file.write(json.dumps({**task.to_dict(), "made_by": made_by}, indent=1).encode())


def load_task(folder: Path) -> Task:
    """The task in `folder`. Raises InputError if there is none, or it cannot be read."""
    path = folder / TASK_FILE
    if not path.is_file():
        raise InputError(f"no task here: {path}; generate_pseudo.py writes it to its --savedir")
    try:
        return Task.from_dict(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a task file: {error!r}") from error
