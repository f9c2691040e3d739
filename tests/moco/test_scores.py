"""Scores against counting; table and CSV."""

import itertools

import numpy as np
import pytest
from scipy.stats import wilcoxon

from common.errors import InputError
from datasets import open_dataset
from moco.scores import (
    TASK_SCORES,
    mean_interval,
    paired,
    paired_table,
    predictions_csv,
    read_tasks,
    score,
    score_table,
    signed_rank_p,
    summary,
    summary_table,
    tasks_csv,
)


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
        assert found["precision"]["abc"[n]] == pytest.approx(precision)
        specificity = np.mean(predicted[truth != n] != n)
        assert found["specificity"]["abc"[n]] == pytest.approx(specificity)
    assert found["macro_f1"] == pytest.approx(np.mean(f1))


def test_auc_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(0)
    truth, p = generator.integers(0, 3, 40), generator.dirichlet([1, 1, 1], 40)
    p[::4] = p[0]  # ties count half
    found = score(truth, p.argmax(axis=1), ("a", "b", "c"), p)
    for n, name in enumerate("abc"):
        pairs = itertools.product(p[truth == n, n], p[truth != n, n])
        share = np.mean([(one > other) + (one == other) / 2 for one, other in pairs])
        assert found["auc"][name] == pytest.approx(share)
    assert found["macro_auc"] == pytest.approx(np.mean(list(found["auc"].values())))
    two = score(truth[truth < 2], p[truth < 2].argmax(axis=1) % 2, ("a", "b"), p[truth < 2, :2])
    assert two["auc"].keys() == {"a", "b"}


def test_score_of_a_class_that_is_never_predicted():
    found = score(np.array([0, 1, 2]), np.array([0, 0, 0]), ("a", "b", "c"))
    assert found["per_class"] == {"a": 1, "b": 0, "c": 0}
    assert found["macro_f1"] == pytest.approx(0.5 / 3)
    assert found["precision"] == {"a": pytest.approx(1 / 3), "b": 0, "c": 0}
    assert found["specificity"] == {"a": 0, "b": 1, "c": 1}


def test_score_table_shows_every_number():
    found = score(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ("left", "right"))
    table = score_table(found)
    assert "left" in table and "50.0%" in table and "66.7%" in table and "60.0%" in table
    assert [int(n) for n in table.splitlines()[2].split() if n.isdigit()] == [3, 1, 2]
    assert "precision" in table and "specificity" in table and "AUC" not in table
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4]])
    found = score(np.array([0, 0, 1, 1, 1]), p.argmax(axis=1), ("left", "right"), p)
    assert "AUC" in score_table(found)
    for key in ("precision", "specificity", "auc", "macro_auc"):  # results of older versions
        del found[key]
    assert "66.7%" in score_table(found) and "precision" not in score_table(found)


def test_predictions_csv(data):
    rare = open_dataset(data).rare.take(open_dataset(data).rare.ids[:2])
    text = predictions_csv(rare, np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]), rare.classes)
    lines = text.splitlines()
    assert lines[0] == "image,truth,prediction,p_DF,p_AKIEC,p_VASC"
    assert lines[1] == f"{rare.ids[0]},DF,AKIEC,0.200000,0.700000,0.100000"


def rows_of(accuracies, **classes):
    scores = [dict.fromkeys(TASK_SCORES, value) for value in accuracies]
    return [{"seed": n, "task": f"t{n}", **row, **classes} for n, row in enumerate(scores)]


def test_mean_and_interval():
    found = mean_interval([0.1, 0.2, 0.4, 0.3])
    assert found["mean"] == pytest.approx(0.25) and found["tasks"] == 4
    assert found["std"] == pytest.approx((0.05 / 3) ** 0.5)
    # Student's t with 3 degrees of freedom: 3.1824 (tables).
    assert found["ci95"] == pytest.approx(3.1824 * found["std"] / 2, rel=1e-4)


def test_summary_of_tasks_and_their_csv(tmp_path):
    rows = rows_of([0.5, 0.7, 0.6])
    for row, name in zip(rows, ("a", "b", "a")):
        row[f"accuracy_{name}"] = row["accuracy"]
    found = summary(rows)
    assert found["accuracy"]["mean"] == pytest.approx(0.6)
    assert found["accuracy_a"]["mean"] == pytest.approx(0.55)
    assert found["accuracy_a"]["tasks"] == 2 and "accuracy_b" not in found  # of a single task
    assert "60.00 ±" in summary_table(found) and "accuracy of a" in summary_table(found)
    (tmp_path / "tasks.csv").write_text(tasks_csv(rows))
    assert read_tasks(tmp_path / "tasks.csv") == rows


def test_paired_differences_cancel_what_tasks_share():
    generator = np.random.default_rng(0)
    hard, gain = generator.normal(0.6, 0.1, 50), generator.normal(0.02, 0.01, 50)
    found = paired(rows_of(hard + gain), rows_of(hard)[::-1])["accuracy"]
    assert found["mean"] == pytest.approx(gain.mean()) and found["ci95"] < 0.004
    assert found["p"] < 1e-8 and found["tasks"] == 50
    assert mean_interval(hard)["ci95"] > 0.02
    reverse = paired(rows_of(hard), rows_of(hard + gain))["accuracy"]
    assert reverse["mean"] == pytest.approx(-gain.mean()) and reverse["p"] == found["p"]
    assert "-" in paired_table({name: reverse for name in TASK_SCORES})
    # Exact: of the 2^5 signs of 5 differences, two are as extreme as all positive.
    few = paired(rows_of([0.6, 0.7, 0.8, 0.9, 1.0]), rows_of([0.5, 0.5, 0.5, 0.5, 0.5]))
    assert few["accuracy"]["p"] == pytest.approx(2 / 32)
    assert paired(rows_of(hard), rows_of(hard))["accuracy"]["p"] == 1


def test_equal_differences_are_ties():
    """Also where rounding makes them differ: their p is that of whole numbers of images."""
    generator = np.random.default_rng(0)
    one, other = generator.integers(40, 61, (2, 30))
    rows = [[{"seed": seed, "task": "", "accuracy": right / 100} for seed, right in enumerate(x)]
            for x in (one, other)]  # fmt: skip
    assert len({*(one / 100 - other / 100)}) > len({*(one - other)})
    exact = wilcoxon((one - other)[one != other]).pvalue
    assert paired(*rows)["accuracy"]["p"] == exact


@pytest.mark.parametrize(("equal", "changed"), [(0, 5), (15, 5), (595, 5), (19, 1)])
def test_equal_pairs_do_not_make_p_smaller(equal, changed):
    """Of the 2^n signs of n differences, two are as extreme as all positive."""
    differences = np.array([0.0] * equal + [0.1 * n for n in range(1, changed + 1)])
    assert signed_rank_p(differences) == pytest.approx(2 / 2**changed)
    assert signed_rank_p(-differences) == pytest.approx(2 / 2**changed)


def test_other_tasks_cannot_be_compared():
    rows, other = rows_of([0.1, 0.2]), rows_of([0.1, 0.2])
    other[1]["task"] = "another"
    with pytest.raises(InputError, match="different tasks of the seeds 1"):
        paired(rows, other)
    with pytest.raises(InputError, match="fewer than 2 tasks"):
        paired(rows, rows[:1])


def test_numbers_as_class_names_are_told_from_counts():
    table = score_table(score(np.array([0, 1]), np.array([0, 0]), ("3", "4")))
    assert table.splitlines()[0].split()[-2:] == ["'3'", "'4'"]
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["'3'", "'4'"]


def test_paired_shows_the_calibration_error_where_both_have_it():
    rows, others = rows_of([0.6, 0.7, 0.8]), rows_of([0.5, 0.7, 0.9])
    assert "ece" not in paired(rows, others)
    rows = [{**row, "ece": ece} for row, ece in zip(rows, (0.1, 0.2, 0.3))]
    assert "ece" not in paired(rows, others)
    found = paired(rows, [{**row, "ece": 0.1} for row in others])
    assert found["ece"]["mean"] == pytest.approx(0.1)
    assert "ECE" in paired_table(found) and "+10.00" in paired_table(found)
