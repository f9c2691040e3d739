"""Read the outputs of the scripts: training runs, pseudo labels and scores."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError, refusing
from common.files import parse_json
from datasets.episode import Task
from datasets.pseudo import PSEUDO_FILE, PseudoLabels, load_pseudo_labels
from moco.scores import read_tasks
from trainer.checkpoint import CHECKPOINT
from trainer.log import LOG


@dataclass(frozen=True)
class Run:
    """A training run in `folder`; `epochs[n]` has the logged values of epoch n, counted from 1."""

    folder: Path
    about: dict
    epochs: dict[int, dict]

    @property
    def task(self) -> Task | None:
        return Task.from_dict(self.about["task"]) if self.about["task"] else None

    def line(self, key: str) -> dict[int, float]:
        """Return the value `key` by epoch, where it was logged."""
        return {n: values[key] for n, values in sorted(self.epochs.items()) if key in values}

    def drops(self) -> dict[int, float]:
        """Return by what the learning rate was divided before an epoch, where it fell at once, not
        along a cosine."""
        if self.about.get("args", {}).get("cos"):
            return {}
        rates = self.line("lr")
        found = {n: rates.get(n - 1, 0) / rate for n, rate in rates.items() if rate}
        return {n: factor for n, factor in found.items() if factor > 1.5}

    def temperatures(self) -> dict[str, dict[int, float]]:
        """Return each class's τ_n by epoch; empty for a run without correction."""
        classes = self.task.classes if self.task else ()
        lines = {name: self.line(f"temperature_{name}") for name in classes}
        return {name: line for name, line in lines.items() if line}


def how_scored(args: dict) -> str:
    """Return, for titles, the settings of test.py that are not the usual ones and change
    probabilities."""
    words = ["L2-normalised"] * bool(args.get("normalize"))
    words += ["temperature cv"] * (args.get("temperature") == "cv")
    words += ["BatchNorm by image"] * (args.get("norm_statistics") == "image")
    return ", ".join(words)


@dataclass(frozen=True)
class Result:
    """Scores of test.py, with predictions in the CSV file beside `path`."""

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
        """The folder of the scored run: --resume of test.py or, if that is missing, the folder of
        the scores."""
        recorded = Path(self.scores["args"]["resume"])
        recorded = recorded.parent if recorded.name == CHECKPOINT else recorded
        folder = self.path.parent
        return folder if not recorded.exists() and (folder / CHECKPOINT).exists() else recorded

    @property
    def how(self) -> str:
        return how_scored(self.scores.get("args", {}))

    @property
    def mistakes(self) -> int:
        """The number of misclassified query images."""
        return int(self.confusion.sum() - self.confusion.trace())

    def kind(self) -> tuple:
        """Return what summable results share, apart from classifier, shots and classes."""
        task = self.task
        options = {name: self.scores["args"].get(name) for name in ("augnum", "rare_split")}
        options["how"] = self.how
        parts = (task.rare, bool(task.excluded_ids), options, self.scores.get("training"))
        return tuple(json.dumps(part, sort_keys=True) for part in parts)


@dataclass(frozen=True)
class Tasks:
    """Scores of test.py --tasks: `rows` of its CSV file, `mean_interval` by score, and `how` they
    were made, see `how_scored`."""

    path: Path
    shots: int
    scores: dict[str, dict]
    rows: list[dict]
    how: str = ""


@dataclass(frozen=True)
class Outputs:
    """Runs, pseudo labels by folder, results in groups (see `group_results`), and scores over many
    tasks."""

    runs: list[Run]
    labels: dict[Path, PseudoLabels]
    results: dict[tuple[Path, str, str, tuple[str, ...]], list[Result]]
    tasks: list[Tasks]

    def every_result(self) -> list[Result]:
        return [result for group in self.results.values() for result in group]


def read_folders(folders: Sequence[Path]) -> Outputs:
    """Read all outputs in `folders`. Raises InputError for an empty folder or an invalid file."""
    names = (LOG, PSEUDO_FILE, "test_*.json", "tasks_*.json")
    found: dict[str, dict[Path, tuple[Path, Path]]] = {name: {} for name in names}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"the folder does not exist: {folder}")
        paths = [(name, path) for name in names for path in sorted(folder.rglob(name))]
        if not paths:
            raise InputError(f"nothing to draw in {folder}: no {', '.join(names)}")
        for name, path in paths:  # a file counts once, however its folder is spelled
            found[name].setdefault(path.resolve(), (folder, path))
    logs, labels, results, tasks = (of_name.values() for of_name in found.values())
    return Outputs(
        [Run(path.parent, *read_log(path)) for _, path in logs],
        {path.parent: load_pseudo_labels(path.parent)[1] for _, path in labels},
        group_results([(folder, read_result(path)) for folder, path in results]),
        [read_many(path) for _, path in tasks],
    )


def group_results(results: Sequence[tuple[Path, Result]]) -> dict[tuple, list[Result]]:
    """Group (folder, result) pairs of the same kind on different tasks.

    Returns the groups by (path, classifier, shots, classes). The path is the folder given by the
    user or, if its group would count a task twice or mix kinds, the parent of the checkpoint
    folder, then the checkpoint folder, then the result file.
    """
    paths: tuple[Callable[[Path, Result], Path], ...] = (
        lambda folder, result: folder,
        lambda folder, result: result.checkpoint.parent,
        lambda folder, result: result.checkpoint,
        lambda folder, result: result.path,
    )
    shared: dict[tuple, list[tuple[Path, Result]]] = {}
    for folder, result in results:
        key = (result.scores["classifier"], result.task.shots, result.task.classes)
        shared.setdefault(key, []).append((folder, result))
    groups: dict[tuple, list[Result]] = {}
    for key, left in shared.items():
        for path_of in paths:
            parts: dict[Path, list[tuple[Path, Result]]] = {}
            for folder, result in left:
                parts.setdefault(path_of(folder, result), []).append((folder, result))
            left = []
            for path, part in parts.items():
                tasks = {result.task.seed for _, result in part}
                kinds = {result.kind() for _, result in part}
                if len(tasks) == len(part) and len(kinds) == 1 and (path, *key) not in groups:
                    groups[(path, *key)] = [result for _, result in part]
                else:
                    left += part
    return groups


def read_log(path: Path) -> tuple[dict, dict[int, dict]]:
    """Return a run's description and its logged values by epoch.

    Lines of a resumed or restarted run replace those of the epochs it repeats. An incomplete last
    line, of a run stopped while writing, is skipped. Raises InputError for other invalid lines.
    """
    about, epochs = None, {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
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
                raise InputError(f"{path}, line {number} is invalid: {error!r}") from error
    if about is None:
        raise InputError(f"{path} is invalid: missing the line that describes the run")
    return about, epochs


def read_result(path: Path) -> Result:
    """Read a JSON file of test.py. Raises InputError if it is invalid."""
    with refusing(f"{path} is not a result of test.py"):
        result = Result(path, parse_json(path.read_bytes(), newest=0))
        if result.confusion.shape != (result.task.n_way, result.task.n_way):
            raise ValueError("the confusion matrix does not match the classes of the task")
        if not isinstance(result.scores["classifier"], str) or not result.checkpoint.parts:
            raise ValueError("missing the classifier or the checkpoint")
    return result


def read_many(path: Path) -> Tasks:
    """Read a JSON file of test.py --tasks and the CSV file beside it. Raises InputError if one is
    invalid."""
    with refusing(f"{path} is not a result of test.py --tasks"):
        values = parse_json(path.read_bytes(), newest=0)
        shots, scores = values["args"]["k_shot"] or 5, values["scores"]
        (scores["accuracy"]["mean"], scores["accuracy"]["ci95"])
        how = how_scored(values["args"])
    return Tasks(path, shots, scores, read_tasks(path.with_suffix(".csv")), how)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return each path without the parts common to all, or its last part if nothing is left; whole
    paths if that does not tell them apart."""
    common = set.intersection(*(set(path.parts) for path in paths))
    names = ["/".join(part for part in path.parts if part not in common) for path in paths]
    names = [name or path.name for name, path in zip(names, paths)]
    return names if len(set(names)) == len(set(paths)) else list(map(str, paths))


def read_predictions(result: Result) -> list[dict]:
    """Return the rows of the CSV file beside a result, with the class probabilities as `p`, and
    the highest as `confidence`. Raises InputError if the file is missing or invalid."""
    path = result.path.with_suffix(".csv")
    with (
        refusing(f"{path} is not a result of test.py"),
        open(path, newline="", encoding="utf-8") as file,
    ):
        rows: list[dict] = list(csv.DictReader(file))
        for row in rows:
            row["p"] = [float(row[f"p_{name}"]) for name in result.task.classes]
            row["confidence"] = float(row[f"p_{row['prediction']}"])
            result.task.classes.index(row["truth"])
    return rows


def worst_mistakes(result: Result, count: int) -> list[dict]:
    """Return the `count` most confident wrong predictions of a result, the most confident first.
    Raises InputError as `read_predictions` does."""
    wrong = [row for row in read_predictions(result) if row["truth"] != row["prediction"]]
    return sorted(wrong, key=lambda row: -row["confidence"])[:count]


def most_similar(embedding: np.ndarray, others: np.ndarray) -> tuple[int, float]:
    """Return the row of `others` most similar to `embedding`, and their cosine similarity."""
    norms = np.linalg.norm(others, axis=1) * np.linalg.norm(embedding)
    cosines = others @ embedding / np.maximum(norms, 1e-12)
    return int(cosines.argmax()), float(cosines.max())
