"""Calibration: expected calibration error, temperatures."""

import math

import numpy as np
import pytest

from common.errors import InputError
from datasets.episode import Task
from moco.calibration import (
    best_temperature,
    reliability,
    with_temperature,
)
from moco.evaluate import fit_classifier, require_calibratable, support_temperature

P = np.array([[0.9, 0.1], [0.85, 0.15], [0.4, 0.6], [0.35, 0.65], [0.5, 0.5]])
TRUTH = np.array([0, 1, 1, 1, 1])


def test_ece_by_hand():
    """Bins of a tenth: two images at 0.875, one right; at 0.6 and 0.65 each one right (0.6 belongs
    to the bin that ends there); one at 0.5, wrong."""
    gaps = 2 * abs(0.5 - 0.875) + 0.4 + 0.35 + 0.5
    assert reliability(P, TRUTH, bins=10).error() == pytest.approx(gaps / 5)
    found = reliability(P, TRUTH, bins=10)
    assert found.images.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 2, 0]
    assert found.accuracy[8] == 0.5 and found.confidence[8] == pytest.approx(0.875)
    assert np.isnan(found.accuracy[0])


def test_ece_against_a_loop():
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 500)
    truth = generator.integers(3, size=500)
    error = 0.0
    for m in range(1, 16):
        inside = [n for n in range(500) if (m - 1) / 15 < p[n].max() <= m / 15]
        if inside:
            accuracy = np.mean([p[n].argmax() == truth[n] for n in inside])
            error += len(inside) / 500 * abs(accuracy - np.mean([p[n].max() for n in inside]))
    assert reliability(p, truth).error() == pytest.approx(error)


def test_ece_of_perfect_and_of_certain_wrong_predictions():
    certain = np.eye(3)[[0, 1, 2]]
    assert reliability(certain, np.array([0, 1, 2])).error() == 0
    assert reliability(certain, np.array([1, 2, 0])).error() == 1


def test_with_temperature():
    logits = np.random.default_rng(0).normal(0, 3, (9, 3))

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    for temperature in (0.5, 1.0, 4.0):
        found = with_temperature(softmax(logits), temperature)
        np.testing.assert_allclose(found, softmax(logits / temperature))
    np.testing.assert_allclose(with_temperature(np.eye(2), 2.0), np.eye(2), atol=1e-100)


def test_best_temperature_undoes_a_known_one():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20000, 3))
    p = with_temperature(np.exp(logits), 1.0)
    truth = np.array([generator.choice(3, p=row) for row in p])
    for temperature in (0.5, 3.0):  # too sure, and not sure enough
        found = best_temperature(with_temperature(p, temperature), truth)
        assert found == pytest.approx(1 / temperature, rel=0.03)
    right = reliability(p, truth).error()
    sure = with_temperature(p, 0.3)
    assert right < 0.02 < 0.15 < reliability(sure, truth).error()


def test_all_right_does_not_mean_certain():
    """M images at probability p, all right: (M+1)/(M+2) instead of 1."""
    p = np.tile([0.7, 0.3], (8, 1))
    temperature = best_temperature(p, np.zeros(8, int))
    assert with_temperature(p, temperature)[0, 0] == pytest.approx(0.9, abs=1e-5)
    p = np.tile([0.7, 0.2, 0.1], (8, 1))  # a temperature cannot move 0.2 to 0.1
    found = with_temperature(p, best_temperature(p, np.zeros(8, int)))[0]
    assert 0.85 < found[0] < 0.95


@pytest.mark.parametrize("counts", [(2, 2), (3, 5)])
def test_support_temperature_predicts_images_that_were_held_out(counts):
    """Against a loop; an image is predicted by a regression without any of its copies."""
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], counts)
    plain = generator.normal(0, 1, (sum(counts), 4)) + np.eye(2, 4)[labels]
    copies = plain[:, None] + generator.normal(0, 0.3, (sum(counts), 5, 4))
    folds = min(counts)
    p = np.zeros((len(labels), 2))
    for fold in range(folds):
        out = np.concatenate(
            [np.array_split(np.flatnonzero(labels == n), folds)[fold] for n in (0, 1)]
        )
        kept = np.setdiff1d(np.arange(len(labels)), out)
        f_c = fit_classifier(copies[kept].reshape(-1, 4), np.repeat(labels[kept], 5))
        p[out] = f_c.predict_proba(plain[out])
    found = support_temperature(copies, plain, labels.tolist())
    assert found == pytest.approx(best_temperature(p, labels))
    assert not math.isclose(found, 1, rel_tol=0.01)


def test_one_image_of_a_class_leaves_none_to_hold_out():
    rare = {"dataset": "x", "counts": {}, "sha256": ""}
    require_calibratable(Task(("3", "scar"), None, None, (("a", "b"), ("c", "d")), rare))
    with pytest.raises(InputError, match="at least 2 of each class, got '3' 1, 'scar' 2;"):
        require_calibratable(Task(("3", "scar"), None, None, (("a",), ("c", "d")), rare))
