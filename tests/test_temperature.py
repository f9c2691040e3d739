"""test.py --temperature cv: calibrated probabilities in scores, tasks and predictions."""

import csv
import json
import shutil

import numpy as np
import pytest

from conftest import call, refused
from datasets import open_dataset
from moco.calibration import reliability, with_temperature
from moco.scores import read_tasks

NAME = "3way_2shot"
RUN = ["--k-shot", 2, "-j", 0]


def result(folder, pattern):
    """The JSON and the rows of the CSV file."""
    (file,) = folder.glob(f"{pattern}.json")
    with open(file.with_suffix(".csv"), encoding="utf-8-sig") as rows:
        return json.loads(file.read_text()), {row["image"]: row for row in csv.DictReader(rows)}


def probabilities(rows):
    return np.array(
        [[float(v) for k, v in row.items() if k.startswith("p_")] for row in rows.values()]
    )


@pytest.fixture(scope="module")
def scored(chain, data, tmp_path_factory):
    root = tmp_path_factory.mktemp("temperature")
    for kind in ("none", "cv"):
        call("test", data, "--resume", chain.pretrained, *RUN, "--temperature", kind,
             "--output", root / kind)  # fmt: skip
    return root


def test_scores(scored, chain, data, capsys):
    before, plain = result(scored / "none", f"test_lr_{NAME}_seed0")
    after, calibrated = result(scored / "cv", f"test_lr_{NAME}_seed0")
    assert "temperature" not in before and after["temperature"] > 0
    assert before["confusion"] == after["confusion"] and before["ece"] != after["ece"]
    expected = with_temperature(probabilities(plain), after["temperature"])
    np.testing.assert_allclose(probabilities(calibrated), expected, atol=2e-5)
    truth = np.array([before["task"]["classes"].index(row["truth"]) for row in plain.values()])
    for scores, rows in ((before, plain), (after, calibrated)):
        ece = reliability(probabilities(rows), truth).error()
        assert scores["ece"] == pytest.approx(ece, abs=1e-3)
    call("test", data, "--resume", chain.pretrained, *RUN, "--temperature", "cv",
         "--output", scored / "cv", "--overwrite")  # fmt: skip
    printed = capsys.readouterr().out
    assert f"lr, temperature {after['temperature']:.2f};" in printed
    assert f"{after['ece']:.1%}" in next(x for x in printed.splitlines() if x.startswith("ECE"))


def test_tasks(scored, chain, data, tmp_path, capsys):
    call("test", data, "--resume", chain.pretrained, *RUN, "--tasks", 2, "--temperature", "cv",
         "--output", tmp_path)  # fmt: skip
    rows = read_tasks(tmp_path / f"tasks_lr_{NAME}_2tasks.csv")
    alone, _ = result(scored / "cv", f"test_lr_{NAME}_seed0")
    assert [rows[0][name] for name in ("temperature", "ece")] == [
        alone[name] for name in ("temperature", "ece")
    ]
    scores = json.loads((tmp_path / f"tasks_lr_{NAME}_2tasks.json").read_text())["scores"]
    assert scores["ece"]["mean"] == pytest.approx((rows[0]["ece"] + rows[1]["ece"]) / 2)
    assert "temperature" not in scores
    printed = capsys.readouterr().out
    assert "classifier: lr, temperature cv;" in printed
    assert any(line.startswith("ECE ") for line in printed.splitlines())


def test_predictions(scored, chain, data, tmp_path, capsys):
    new = tmp_path / "new"
    new.mkdir()
    rare = open_dataset(data).rare
    for path in rare.paths[:2]:
        shutil.copy(path, new / path.name)
    argv = [data, "--resume", chain.pretrained, *RUN, "--predict", new, "--no-none-of-these",
            "--skip-unreadable"]  # fmt: skip
    for kind in ("none", "cv"):
        call("test", *argv, "--temperature", kind, "--output", tmp_path / kind)
    temperature = result(scored / "cv", f"test_lr_{NAME}_seed0")[0]["temperature"]
    _, plain = result(tmp_path / "none", "predict_*")
    about, calibrated = result(tmp_path / "cv", "predict_*")
    assert about["temperature"] == temperature
    expected = with_temperature(probabilities(plain), temperature)
    np.testing.assert_allclose(probabilities(calibrated), expected, atol=2e-5)
    # A file that cannot be read is added; no image is computed, the temperature stays.
    (new / "x.png").write_bytes(b"")
    capsys.readouterr()
    call("test", *argv, "--temperature", "cv", "--output", tmp_path / "cv")
    assert f"temperature {temperature:.2f};" in capsys.readouterr().out
    about, rows = result(tmp_path / "cv", "predict_*")
    assert about["temperature"] == temperature and rows["x.png"]["error"]


@pytest.mark.parametrize("more", [[], ["--tasks", 2]])
def test_one_shot_leaves_nothing_to_hold_out(more, chain, data, tmp_path, capsys, monkeypatch):
    words = [data, "--resume", chain.pretrained, "--k-shot", 1, "--temperature", "cv", *more]
    said = refused(capsys, monkeypatch, "test", *words, "--output", tmp_path)
    assert "at least 2 of each class, got DF 1, AKIEC 1, VASC 1;" in said


def test_a_students_own_classifier_is_refused(chain, data, tmp_path, capsys, monkeypatch):
    words = [data, "--resume", chain.student, "--load-cla", "--temperature", "cv"]
    said = refused(capsys, monkeypatch, "test", *words, "--output", tmp_path)
    assert "--temperature cv fits a logistic regression" in said and "direct" in said
