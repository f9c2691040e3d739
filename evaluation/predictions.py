"""Predictions of images without labels: rows of the CSV file, added to later, and their summary."""

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from common.errors import InputError, refusing
from common.files import csv_text
from common.names import beside_numbers
from datasets.images import ImageSet
from moco.scores import aligned

Row = dict[str, str]
NONE, VERDICT, ERROR = "none_of_these", "verdict", "error"
NONE_OF_THESE = "none of these"


def predicted_rows(
    images: ImageSet, probabilities: np.ndarray, classes: Sequence[str], none: np.ndarray | None
) -> list[Row]:
    """Return a row per image: id, predicted class, N class probabilities, M×N, and, if known, how
    much it looks like none of the classes, M."""
    rows = []
    for i, (name, p) in enumerate(zip(images.ids, probabilities)):
        row = {"image": name, "prediction": classes[p.argmax()]}
        row |= {f"p_{c}": f"{value:.6f}" for c, value in zip(classes, p)}
        rows.append(row if none is None else row | {NONE: f"{none[i]:.6f}"})
    return rows


def error_rows(errors: Mapping[str, str]) -> list[Row]:
    """Return a row per image that cannot be read: id and reason."""
    return [{"image": name, ERROR: reason} for name, reason in errors.items()]


def added_by_readers(row: Row, classes: Sequence[str]) -> Row:
    """Return what a row of an earlier file has in columns that somebody has added."""
    own = {"image", "prediction", NONE, VERDICT, ERROR, *(f"p_{name}" for name in classes)}
    return {name: value for name, value in row.items() if name not in own}


def merged(rows: Sequence[Row], new: Sequence[Row], classes: Sequence[str]) -> list[Row]:
    """Return `rows`, with those of the same images in `new` replaced, and the rest of `new`; what
    readers have added to a row stays with its image."""
    by_image = {row["image"]: row for row in rows}
    for row in new:
        before = by_image.get(row["image"], {})
        by_image[row["image"]] = row | added_by_readers(before, classes)
    return list(by_image.values())


def confidence(row: Row) -> float:
    """Return the probability of the predicted class."""
    return float(row[f"p_{row['prediction']}"])


def verdict(row: Row, level: float) -> str:
    """Return the predicted class, or NONE_OF_THESE if more than a share `level` of the base images
    look at least as rare; empty for an image that was not read."""
    if row.get(NONE) and float(row[NONE]) > level:
        return NONE_OF_THESE
    return row.get("prediction", "")


def predictions_text(rows: Sequence[Row], classes: Sequence[str], level: float) -> str:
    """Return CSV text with the mark (BOM) by which Excel knows UTF-8.

    The columns NONE and VERDICT are there if it is known of any image, ERROR if one was not read.
    Columns that somebody has added to an earlier file come last.
    """
    columns = ["image", "prediction", *(f"p_{name}" for name in classes)]
    columns += [NONE, VERDICT] * any(row.get(NONE) for row in rows)
    columns += [ERROR] * any(row.get(ERROR) for row in rows)
    columns += dict.fromkeys(name for row in rows for name in added_by_readers(row, classes))
    told = [{**row, VERDICT: verdict(row, level)} for row in rows]
    return "\ufeff" + csv_text([columns, *([row.get(name) for name in columns] for row in told)])


def read_predictions(path: Path, classes: Sequence[str]) -> list[Row]:
    """Return the rows of an earlier CSV file. Raises InputError if it is not one of `classes`, or
    has cells outside the columns with names of their own, which could not be kept."""
    with (
        refusing(
            f"{path} is not a CSV file of test.py --predict, in UTF-8 with commas and decimal "
            "points; save it as such, or replace it with --overwrite, without what you have added"
        ),
        open(path, newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv.DictReader(file)
        cells = list(reader)
        names = [name for name in reader.fieldnames or [] if name]
        if "image" not in names:
            raise ValueError("other columns than expected")
        if len({*names}) < len(names) or any(
            row.get("") or any(row.get(None) or ()) for row in cells
        ):
            raise InputError(
                f"{path}: an added column has no name, or that of another; name it, so that it "
                "can be kept"
            )
        rows = [{k: v for k, v in row.items() if k and v} for row in cells]
        for row in rows:
            if not row["image"] or row.get("prediction", classes[0]) not in classes:
                raise ValueError("other columns than expected")
            if "prediction" in row:
                float(row.get(NONE, 0)), [float(row[f"p_{name}"]) for name in classes]
        return rows


def page_mark(page: str) -> str:
    """Return what the HTML page of a result contains, by which it is known as that of the result,
    whose JSON file has `page`."""
    return f'<meta name="result" content="{page}">'


def page_title(name: str) -> str:
    """Return the title of the page of images called `name`."""
    return f"Predictions of {name}"


def require_page(file: Path, page: str, name: str) -> None:
    """Raise InputError if `file` exists and is not the page of this result, which is replaced: it
    has another mark or, if it is of an earlier version, which made none, another title."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else page_mark(page)
    marked, title = page_mark("")[:-2] in text, f"<title>{escape(page_title(name))}</title>"
    if (page_mark(page) if marked else title) not in text:
        raise InputError(
            f"--sheet {file} exists and is not the page of these predictions; choose another file "
            "or add --overwrite"
        )


def prediction_summary(rows: Sequence[Row], classes: Sequence[str], level: float) -> str:
    """Format for the screen how many images were predicted as each class, and how confidently."""
    read = [row for row in rows if "prediction" in row]
    known = any(NONE in row for row in read)
    table = [["", "images", "mean confidence", *[NONE_OF_THESE] * known]]
    groups = [[row for row in read if row["prediction"] == name] for name in classes]
    for label, group in zip([*beside_numbers(classes), "total"], [*groups, read]):
        mean = f"{np.mean([confidence(row) for row in group]):.1%}" if group else "–"
        none = sum(verdict(row, level) == NONE_OF_THESE for row in group)
        table.append([label, len(group), mean, *[none] * known])
    if unread := len(rows) - len(read):
        table.append(["unreadable", unread])
    return aligned(table)
