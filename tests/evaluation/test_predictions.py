"""Rows of predictions, as a CSV file that is added to, and their summary."""

import csv
import io
import re

import numpy as np
import pytest

from common.errors import InputError
from datasets.images import ImageSet
from evaluation.predictions import (
    error_rows,
    predicted_rows,
    prediction_summary,
    predictions_text,
    read_predictions,
    verdict,
)

CLASSES = ("Narbe, groß", "VASC")
P = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])


def images(*ids):
    return ImageSet("new", ("?",), ids, (), (0,) * len(ids))


@pytest.fixture
def rows():
    return predicted_rows(images("ä.png", "b", "c"), P, CLASSES, np.array([0.01, 0.05, 0.4]))


def test_the_file_is_read_back_and_opens_in_excel(rows, tmp_path):
    rows += error_rows({"d": "not an image"})
    file = tmp_path / "a.csv"
    file.write_bytes(predictions_text(rows, CLASSES, 0.05).encode())
    assert file.read_bytes().startswith(b"\xef\xbb\xbfimage,prediction,")
    found = read_predictions(file, CLASSES)
    assert [row.get("verdict") for row in found] == ["Narbe, groß", "VASC", "none of these", None]
    assert [{k: v for k, v in row.items() if k != "verdict"} for row in found] == rows
    assert found[3] == {"image": "d", "error": "not an image"}
    with pytest.raises(InputError, match="not a CSV file of test.py --predict"):
        read_predictions(file, ("DF", "VASC"))


@pytest.mark.parametrize(
    ("head", "cell"),
    [(",", ",seen"), (",", ",,seen"), ("", ",seen"), (",note,note", ",a,b"), (",p_VASC", ",1")],
)
def test_cells_that_could_not_be_kept_are_refused(rows, tmp_path, head, cell):
    first, second, *others = predictions_text(rows, CLASSES, 0.05).splitlines()
    file = tmp_path / "a.csv"
    file.write_text("\n".join([first + head, second + cell, *others]), encoding="utf-8")
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: an added column has no name"):
        read_predictions(file, CLASSES)
    file.write_text("\n".join([f"{first},,", f"{second},,,", *others]), encoding="utf-8")
    assert len(read_predictions(file, CLASSES)) == 3  # empty columns, as spreadsheets leave them


@pytest.mark.parametrize("saved", ["semicolons", "tabs", "Windows-1252", "decimal commas"])
def test_files_saved_in_another_way_say_how_to_save_them(rows, tmp_path, saved):
    """And that --overwrite would cost what was added."""
    text = predictions_text(rows, CLASSES, 0.05).removeprefix("\ufeff")
    file = tmp_path / "a.csv"
    text = {
        "semicolons": text.replace(",", ";"), "tabs": text.replace(",", "\t"),
        "decimal commas": re.sub(r"(0\.\d+)", lambda m: f'"{m[0].replace(".", ",")}"', text),
    }.get(saved, text)  # fmt: skip
    file.write_bytes(text.encode("cp1252" if saved == "Windows-1252" else "utf-8"))
    with pytest.raises(
        InputError, match="in UTF-8 with commas and decimal points; save it as such"
    ):
        read_predictions(file, CLASSES)


def test_columns_only_where_known():
    text = predictions_text(predicted_rows(images("a", "b", "c"), P, CLASSES, None), CLASSES, 0.05)
    head = next(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    assert head == ["image", "prediction", "p_Narbe, groß", "p_VASC"]


def test_summary_and_level(rows):
    lines = prediction_summary(rows + error_rows({"d": "x"}), CLASSES, 0.05).splitlines()
    assert lines[0].split()[-3:] == ["none", "of", "these"]
    assert lines[1].split()[-3:] == ["2", "75.0%", "1"]
    assert lines[2].split() == ["'VASC'", "1", "70.0%", "0"]
    assert lines[3].split() == ["total", "3", "73.3%", "1"]
    assert lines[4].split() == ["unreadable", "1"]
    assert [verdict(row, 0.005) for row in rows] == ["none of these"] * 3
    assert "none" not in prediction_summary([{**rows[0], "none_of_these": ""}][:0], CLASSES, 0.05)
