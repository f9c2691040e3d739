"""Scores of predictions, as a dictionary, a table for the screen, and a CSV file."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t, wilcoxon
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from common.errors import InputError, listed, refusing
from common.files import csv_text
from common.names import beside_numbers
from datasets.episode import Task
from datasets.images import ImageSet

from .calibration import reliability


def score(
    truth: np.ndarray,
    predicted: np.ndarray,
    classes: tuple[str, ...],
    probabilities: np.ndarray | None = None,
) -> dict:
    """Return the scores of M predictions, as fractions.

    Accuracy; by class accuracy A_1…A_N (sensitivity), precision and specificity; `average`, the
    balanced accuracy, the mean of A_1…A_N; macro F1; `confusion[i][j]`, the number of images of
    class i predicted as class j. With `probabilities`, M×N, also the AUC of each class against the
    rest, their mean, and `ece`, the expected calibration error. `truth`, `predicted`: class
    indices. Precision is 0 for a class that is never predicted, as in F1.
    """
    labels = list(range(len(classes)))
    confusion = confusion_matrix(truth, predicted, labels=labels)
    hits, images, total = confusion.diagonal(), confusion.sum(axis=1), confusion.sum()
    found = confusion.sum(axis=0)
    per_class = hits / images
    by_class = {
        "per_class": per_class,
        "precision": hits / np.maximum(found, 1),
        "specificity": 1 - (found - hits) / np.maximum(total - images, 1),
    }
    scores = {
        "accuracy": float(hits.sum() / total),
        "average": float(per_class.mean()),
        "macro_f1": float(f1_score(truth, predicted, average="macro", labels=labels)),
        "confusion": confusion.tolist(),
    }
    if probabilities is not None:
        auc = [roc_auc_score(truth == n, probabilities[:, n]) for n in labels]
        by_class["auc"] = np.array(auc)
        scores["macro_auc"] = float(np.mean(auc))
        scores["ece"] = reliability(probabilities, truth).error()
    return scores | {name: dict(zip(classes, x.tolist())) for name, x in by_class.items()}


BY_CLASS = {"per_class": "accuracy", "precision": "precision", "specificity": "specificity",
            "auc": "AUC"}  # fmt: skip


def aligned(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as a table for the screen: the first column to the left, others to the right."""
    rows = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def score_table(scores: dict) -> str:
    """Format `score`'s result for the screen: a row per true class, a column per prediction."""
    names = list(scores["per_class"])
    shown = beside_numbers(names)
    columns = {kind: title for kind, title in BY_CLASS.items() if kind in scores}  # older: fewer
    rows = [["", "images", *columns.values(), "predicted as", *shown]]
    for name, label, counts in zip(names, shown, scores["confusion"]):
        values = (f"{scores[kind][name]:.1%}" for kind in columns)
        rows.append([label, sum(counts), *values, "", *counts])
    means = (f"{np.mean(list(scores[kind].values())):.1%}" for kind in columns)
    rows.append(["total", sum(map(sum, scores["confusion"])), f"{scores['accuracy']:.1%}"])
    rows.append(["mean of classes", "", *means])
    rows.append(["macro F1", "", f"{scores['macro_f1']:.1%}"])
    if "ece" in scores:
        rows.append(["ECE", "", f"{scores['ece']:.1%}"])
    return aligned(rows)


TASK_SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
}
TITLES = TASK_SCORES | {"ece": "ECE"}  # files of earlier versions have no ECE


def task_key(task: Task) -> str:
    """Return a hash of a task, its support set and query set."""
    content = json.dumps([task.classes, task.support_ids, task.excluded_ids, task.rare["sha256"]])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def task_row(task: Task, scores: dict) -> dict[str, Any]:
    """Return a task's row of the CSV file: its seed, `task_key`, and its scores."""
    return {
        "seed": task.seed,
        "task": task_key(task),
        "accuracy": scores["accuracy"],
        "balanced_accuracy": scores["average"],
        "macro_f1": scores["macro_f1"],
        "macro_auc": scores["macro_auc"],
        **{name: scores[name] for name in ("ece", "temperature") if name in scores},
        **{f"accuracy_{name}": value for name, value in scores["per_class"].items()},
    }


def mean_interval(values: Iterable[float]) -> dict[str, float | int]:
    """Return mean, sample standard deviation, number of tasks, and half the width of the 95 %
    confidence interval of the mean by Student's t, of at least 2 values."""
    values = np.array(list(values))
    std, count = values.std(ddof=1), len(values)
    half = t.ppf(0.975, count - 1) * std / np.sqrt(count)
    return {"mean": float(values.mean()), "ci95": float(half), "std": float(std), "tasks": count}


def exact_ties(differences: Iterable[float]) -> np.ndarray:
    """Return differences of scores without their rounding errors: to a test by ranks, those of
    0.7 − 0.6 and 0.8 − 0.7 are equal."""
    return np.round(list(differences), 12)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """Return `mean_interval` of each score of `task_row`; a class counts where a task has it."""
    others = ("seed", "task", "temperature")
    names = dict.fromkeys(name for row in rows for name in row if name not in others)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: mean_interval(values) for name, values in found.items() if len(values) > 1}


def summary_table(found: dict[str, dict]) -> str:
    """Format `summary`'s result for the screen."""
    rows = [["", "mean ± 95 % interval", "std", "tasks"]]
    for name, values in found.items():
        title = TITLES.get(name) or name.replace("_", " of ", 1)
        mean = f"{100 * values['mean']:.2f} ± {100 * values['ci95']:.2f} %"
        rows.append([title, mean, f"{100 * values['std']:.2f}", values["tasks"]])
    return aligned(rows)


def tasks_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return CSV text: a row per task of `task_row`, empty for classes that the task lacks."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text([columns, *([row.get(name) for name in columns] for row in rows)])


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file of `tasks_csv`. Raises InputError if it is not one."""
    with (
        refusing(f"{path} is not a CSV file of test.py --tasks"),
        open(path, newline="", encoding="utf-8") as file,
    ):
        rows = []
        for row in csv.DictReader(file):
            numbers = {name: float(v) for name, v in row.items() if name != "task" and v != ""}
            rows.append({**numbers, "seed": int(row["seed"]), "task": row["task"]})
        if not rows or not all(TASK_SCORES.keys() <= row.keys() for row in rows):
            raise ValueError("missing scores")
        return rows


def paired(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """Compare the scores of two methods on the same tasks, paired by seed.

    Returns, for each score, `mean_interval` of the difference, `rows` minus `others`, and `p` of
    Wilcoxon's signed-rank test, two-sided. Raises InputError if they have fewer than 2 seeds in
    common or different tasks of a seed.
    """
    of_seed = {row["seed"]: row for row in others}
    pairs = [(row, of_seed[row["seed"]]) for row in rows if row["seed"] in of_seed]
    if different := [row["seed"] for row, other in pairs if row["task"] != other["task"]]:
        raise InputError(f"different tasks of the seeds {listed(different)}: not the same images, "
                         "classes, shots or exclusions")  # fmt: skip
    if len(pairs) < 2:
        raise InputError("fewer than 2 tasks in common")
    found = {}
    for name in TITLES:
        if not all(name in row for pair in pairs for row in pair):
            continue
        differences = exact_ties(row[name] - other[name] for row, other in pairs)
        found[name] = {**mean_interval(differences), "p": signed_rank_p(differences)}
    return found


def signed_rank_p(differences: np.ndarray) -> float:
    """Return p of Wilcoxon's two-sided signed-rank test. Equal pairs say nothing; left to scipy,
    their number would decide between the exact distribution and its approximation."""
    changed = differences[differences != 0]
    return float(wilcoxon(changed).pvalue) if changed.size else 1.0


def paired_table(found: dict[str, dict]) -> str:
    """Format `paired`'s result for the screen."""
    rows = [["", "difference, 95 % interval", "Wilcoxon's p", "tasks"]]
    for name, values in found.items():
        mean = f"{100 * values['mean']:+.2f} ± {100 * values['ci95']:.2f} %"
        rows.append([TITLES[name], mean, f"{values['p']:.2g}", values["tasks"]])
    return aligned(rows)


def predictions_csv(images: ImageSet, probabilities: np.ndarray, classes: Sequence[str]) -> str:
    """Return CSV text: per image its id, true class, prediction and probabilities."""
    rows = [["image", "truth", "prediction", *(f"p_{name}" for name in classes)]]
    for name, label, p in zip(images.ids, images.labels, probabilities):
        true, predicted = images.classes[label], classes[p.argmax()]
        rows.append([name, true, predicted, *(f"{value:.6f}" for value in p)])
    return csv_text(rows)
