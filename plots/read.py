"""What the scripts left in folders: runs, pseudo labels, scores."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import parse_json
from datasets.episode import Task
from datasets.pseudo import PSEUDO_FILE, PseudoLabels, load_pseudo_labels
from trainer.checkpoint import CHECKPOINT
from trainer.log import LOG


@dataclass(frozen=True)
class Run:
    """What a training left in `folder`: `epochs[n]`, what the log says of the epoch with which n
    are done."""

    folder: Path
    about: dict
    epochs: dict[int, dict]

    @property
    def task(self) -> Task | None:
        return Task.from_dict(self.about["task"]) if self.about["task"] else None

    def line(self, key: str) -> dict[int, float]:
        """A statistic by epoch, where it was logged."""
        return {n: values[key] for n, values in sorted(self.epochs.items()) if key in values}

    def temperatures(self) -> dict[str, dict[int, float]]:
        """Each class's τ_n by epoch; empty for a run without correction."""
        classes = self.task.classes if self.task else ()
        lines = {name: self.line(f"temperature_{name}") for name in classes}
        return {name: line for name, line in lines.items() if line}


@dataclass(frozen=True)
class Result:
    """What test.py wrote: scores, and, in the CSV file beside them, predictions."""

    path: Path
    scores: dict

    @property
    def task(self) -> Task:
        return Task.from_dict(self.scores["task"])

    @property
    def confusion(self) -> np.ndarray:
        return np.array(self.scores["confusion"])

    @property
    def checkpoint(self) -> Path:
        """The folder of the run that was scored: as test.py was told, or, where that is gone, the
        one that the scores are in."""
        told = Path(self.scores["args"]["resume"])
        told = told.parent if told.name == CHECKPOINT else told
        here = self.path.parent
        return here if not told.exists() and (here / CHECKPOINT).exists() else told

    @property
    def mistakes(self) -> int:
        """How many query images were taken for another class."""
        return int(self.confusion.sum() - self.confusion.trace())

    def kind(self) -> tuple:
        """What results that are added up have in common, besides classifier, shots and classes."""
        task = self.task
        how = {name: self.scores["args"].get(name) for name in ("augnum", "rare_split")}
        more = (task.rare, bool(task.excluded_ids), how, self.scores.get("training"))
        return tuple(json.dumps(part, sort_keys=True) for part in more)


@dataclass(frozen=True)
class Found:
    """What the folders hold; `results` in groups that may be added up, see `add_up`."""

    runs: list[Run]
    labels: dict[Path, PseudoLabels]
    results: dict[tuple[Path, str, int | None, tuple[str, ...]], list[Result]]

    def every_result(self) -> list[Result]:
        return [result for group in self.results.values() for result in group]


def find(folders: Sequence[Path]) -> Found:
    """Raises InputError for a folder with nothing to draw, or a file that cannot be read."""
    runs, labels, results = {}, {}, {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"the folder does not exist: {folder}")
        here = {name: sorted(folder.rglob(name)) for name in (LOG, PSEUDO_FILE, "test_*.json")}
        if not any(here.values()):
            raise InputError(f"nothing to draw in {folder}: no {', '.join(here)}")
        runs |= {path.parent: Run(path.parent, *read_log(path)) for path in here[LOG]}
        labels |= {p.parent: load_pseudo_labels(p.parent)[1] for p in here[PSEUDO_FILE]}
        for path in here["test_*.json"]:
            results.setdefault(path.resolve(), (folder, read_result(path)))
    return Found(list(runs.values()), labels, add_up(list(results.values())))


def add_up(results: Sequence[tuple[Path, Result]]) -> dict[tuple, list[Result]]:
    """Groups of results of one kind on different tasks, by (place, classifier, shots, classes).

    The place is the folder that was named. Where that would count a task twice (methods side by
    side), it is the folder that the checkpoints are in; where that would, too, the checkpoint; and
    at last the file.
    """

    def split(group: list[tuple[Path, Result]], by: tuple[Callable, ...]) -> Iterator[tuple]:
        parts: dict[Path, list[tuple[Path, Result]]] = {}
        for folder, result in group:
            parts.setdefault(by[0](folder, result), []).append((folder, result))
        for place, part in parts.items():
            tasks = {result.task.seed for _, result in part}
            kinds = {result.kind() for _, result in part}
            if len(tasks) == len(part) and len(kinds) == 1:
                yield place, [result for _, result in part]
            else:
                yield from split(part, by[1:])

    places = (
        lambda folder, result: folder,
        lambda folder, result: result.checkpoint.parent,
        lambda folder, result: result.checkpoint,
        lambda folder, result: result.path,
    )
    kinds: dict[tuple, list[tuple[Path, Result]]] = {}
    for folder, result in results:
        kind = (result.scores["classifier"], result.task.k_shot, result.task.classes)
        kinds.setdefault(kind, []).append((folder, result))
    return {
        (place, *kind): part
        for kind, group in kinds.items()
        for place, part in split(group, places)
    }


def read_log(path: Path) -> tuple[dict, dict[int, dict]]:
    """What a run is, and what its log says of each epoch.

    Where the run was resumed or started anew, what it then said holds. A last line that is only
    half there is passed over: the run was stopped while it wrote. Raises InputError for any other.
    """
    about, epochs = None, {}
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line, newest=0)
            if "stage" in values:
                values["task"] and Task.from_dict(values["task"])
                about = values
                epochs = {n: v for n, v in epochs.items() if n <= values["start_epoch"]}
            else:
                epochs[int(values["epoch"])] = {
                    key: float(value) for key, value in values.items() if value is not None
                }
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}, is not of a log: {error!r}") from error
    if about is None:
        raise InputError(f"{path} does not say what the run is")
    return about, epochs


def read_result(path: Path) -> Result:
    """Raises InputError if what is in `path` is not test.py's."""
    try:
        result = Result(path, parse_json(path.read_bytes(), newest=0))
        if result.confusion.shape != (result.task.n_way, result.task.n_way):
            raise ValueError("the confusion matrix is not of the task's classes")
        if not isinstance(result.scores["classifier"], str) or not result.checkpoint.parts:
            raise ValueError("it does not say what was scored")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not test.py's: {error!r}") from error
    return result


def short_names(paths: Sequence[Path]) -> list[str]:
    """The parts of each path that not all of them have; the last one if there is but one path."""
    common = set.intersection(*(set(path.parts) for path in paths))
    names = ["/".join(part for part in path.parts if part not in common) for path in paths]
    return [name or path.name for name, path in zip(names, paths)]


def worst_mistakes(path: Path, count: int) -> list[dict]:
    """The `count` lines of test.py's CSV that are wrong and most sure of it, the surest first.

    Raises InputError if the file is not there, or not test.py's.
    """
    try:
        with open(path, newline="") as file:
            wrong = [row for row in csv.DictReader(file) if row["truth"] != row["prediction"]]
        for row in wrong:
            row["p"] = float(row[f"p_{row['prediction']}"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not test.py's: {error!r}") from error
    return sorted(wrong, key=lambda row: -row["p"])[:count]


def most_similar(embedding: np.ndarray, others: np.ndarray) -> tuple[int, float]:
    """Which row of `others` is nearest to `embedding` in angle, and the cosine."""
    lengths = np.linalg.norm(others, axis=1) * np.linalg.norm(embedding)
    cosines = others @ embedding / np.maximum(lengths, 1e-12)
    return int(cosines.argmax()), float(cosines.max())
