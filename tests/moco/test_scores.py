"""Scores against counting; table and CSV."""

import numpy as np
import pytest

from datasets import open_dataset
from moco.scores import predictions_csv, score, score_table


def test_score_against_counting():
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([0, 0, 1, 2, 1, 1, 2, 2, 2, 0])
    found = score(truth, predicted, ("a", "b", "c"))
    assert found["accuracy"] == 0.7
    assert found["per_class"] == {"a": 0.5, "b": 1.0, "c": 0.75}
    assert found["average"] == 0.75
    assert found["confusion"] == [[2, 1, 1], [0, 2, 0], [1, 0, 3]]
    f1 = []
    for n in range(3):
        precision = np.mean(truth[predicted == n] == n)
        recall = np.mean(predicted[truth == n] == n)
        f1.append(2 * precision * recall / (precision + recall))
    assert found["macro_f1"] == pytest.approx(np.mean(f1))


def test_score_of_a_class_that_is_never_predicted():
    found = score(np.array([0, 1, 2]), np.array([0, 0, 0]), ("a", "b", "c"))
    assert found["per_class"] == {"a": 1, "b": 0, "c": 0}
    assert found["macro_f1"] == pytest.approx(0.5 / 3)


def test_score_table_shows_every_number():
    found = score(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ("left", "right"))
    table = score_table(found)
    assert "left" in table and "50.0%" in table and "66.7%" in table and "60.0%" in table
    assert [int(n) for n in table.splitlines()[2].split() if n.isdigit()] == [3, 1, 2]


def test_predictions_csv(data):
    rare = open_dataset(data).rare.take(open_dataset(data).rare.ids[:2])
    text = predictions_csv(rare, np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]), rare.classes)
    lines = text.splitlines()
    assert lines[0] == "image,truth,prediction,p_DF,p_AKIEC,p_VASC"
    assert lines[1] == f"{rare.ids[0]},DF,AKIEC,0.200000,0.700000,0.100000"
