"""Scores of predictions, as a dictionary, a table for the screen, and a CSV file."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

from datasets.images import ImageSet


def score(truth: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...] | None = None) -> dict:
    """Return accuracy, per-class accuracies A_1…A_N, their mean, macro F1 and confusion matrix.

    `truth`, `predicted`: class indices. Scores are fractions; `confusion[i][j]` counts images of
    class i predicted as class j.
    """
    classes = classes or tuple(str(label) for label in np.unique(truth))
    labels = list(range(len(classes)))
    confusion = confusion_matrix(truth, predicted, labels=labels)
    per_class = confusion.diagonal() / confusion.sum(axis=1)
    return {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "per_class": dict(zip(classes, per_class.tolist())),
        "average": float(per_class.mean()),
        "macro_f1": float(f1_score(truth, predicted, average="macro", labels=labels)),
        "confusion": confusion.tolist(),
    }


def score_table(scores: dict) -> str:
    """Format `score`'s result for the screen: a row per true class, a column per prediction."""
    names = list(scores["per_class"])
    width = max(len(name) for name in (*names, "mean of classes"))
    cell = max(len(name) for name in (*names, "accuracy")) + 2
    lines = [
        f"{'':{width}}{'images':>8}{'accuracy':>10}  predicted as"
        + "".join(f"{n:>{cell}}" for n in names)
    ]
    for name, row in zip(names, scores["confusion"]):
        counts = "".join(f"{count:>{cell}}" for count in row)
        lines.append(
            f"{name:{width}}{sum(row):>8}{scores['per_class'][name]:>10.1%}{'':14}{counts}"
        )
    total = sum(map(sum, scores["confusion"]))
    lines.append(f"{'total':{width}}{total:>8}{scores['accuracy']:>10.1%}")
    lines.append(f"{'mean of classes':{width}}{'':8}{scores['average']:>10.1%}")
    lines.append(f"{'macro F1':{width}}{'':8}{scores['macro_f1']:>10.1%}")
    return "\n".join(lines)


def predictions_csv(
    images: ImageSet, probabilities: np.ndarray, classes: Sequence[str], truth: bool = True
) -> str:
    """Return CSV text: per image its id, true class (if `truth`), prediction and probabilities."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["truth"] if truth else []
    writer.writerow(["image", *columns, "prediction", *(f"p_{name}" for name in classes)])
    for name, label, row in zip(images.ids, images.labels, probabilities):
        true_class = [images.classes[label]] if truth else []
        writer.writerow([name, *true_class, classes[row.argmax()], *(f"{p:.6f}" for p in row)])
    return text.getvalue()
