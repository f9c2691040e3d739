"""None of these: distances to rare classes beside the base images'."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

from common.errors import InputError
from moco.outliers import Reference, fit_reference, load_reference, relative_mahalanobis

rng = np.random.default_rng(0)


def test_relative_mahalanobis_is_a_difference_of_two_distances():
    base, means, z = (rng.normal(size=(n, 4)) for n in (30, 3, 5))
    precision = np.linalg.inv(ledoit_wolf(base)[0])
    expected = np.empty((5, 3))
    for i in range(5):
        to_base = z[i] - base.mean(axis=0)
        for n in range(3):
            to_class = z[i] - means[n]
            expected[i, n] = to_class @ precision @ to_class - to_base @ precision @ to_base
    weights, biases = relative_mahalanobis(means, base)
    np.testing.assert_allclose(z @ weights.T + biases, expected)


@pytest.mark.parametrize(("distance", "count"), [(-2.0, 0), (0.0, 2), (0.5, 2), (9.0, 4)])
def test_base_images_at_the_same_distance_count(distance, count):
    base = [np.array([-1.0, 0.0, 1.0, 2.0])]
    reference = Reference(np.zeros((1, 1, 3)), np.array([[distance]]), base, {})
    assert reference.none_of_these(np.ones((1, 3))) == (1 + count) / 5


def clouds(count, centre):
    return rng.normal(size=(count, 8)) + centre


@pytest.fixture(scope="module")
def reference():
    copies = np.stack([clouds(5, 4 * np.eye(8)[n]) for n in (0, 0, 1, 1)])
    base = clouds(400, 4 * np.eye(8)[7])
    return fit_reference(copies, np.array([0, 0, 1, 1]), base, {"epoch": 3})


def test_base_images_are_none_of_these_and_rare_ones_are_not(reference):
    common = reference.none_of_these(clouds(1000, 4 * np.eye(8)[7]))
    rare = np.concatenate([reference.none_of_these(clouds(500, 4 * np.eye(8)[n])) for n in (0, 1)])
    assert roc_auc_score(np.repeat([1, 0], 1000), np.concatenate([common, rare])) > 0.98
    assert (common <= 0.05).mean() < 0.08  # set on base images alone
    assert common.mean() == pytest.approx(0.5, abs=0.05)
    assert (rare <= 0.05).mean() > 0.8


def test_base_images_are_compared_by_fits_without_them():
    # With more dimensions than images, scores in the fit itself would all look common.
    base, copies = rng.normal(size=(60, 100)), rng.normal(size=(2, 1, 100))
    reference = fit_reference(copies, np.array([0, 1]), base, {})
    assert [len(scores) for scores in reference.base_scores] == [12] * 5
    new = rng.normal(size=(500, 100))
    assert reference.none_of_these(new).mean() == pytest.approx(0.5, abs=0.1)
    # By hand: of each fit, the left-out images whose score is not higher.
    z = normalize(new[:1])[0]
    count = 0
    for w, b, left_out in zip(reference.weights, reference.biases, reference.base_scores):
        count += sum(score <= min(w[0] @ z + b[0], w[1] @ z + b[1]) for score in left_out)
    assert reference.none_of_these(new[:1])[0] == pytest.approx((1 + count) / 61)


def test_saved_and_read(reference, tmp_path):
    file = tmp_path / "a.npz"
    reference.save(file)
    again = load_reference(file)
    z = rng.normal(size=(5, 8))
    np.testing.assert_array_equal(again.none_of_these(z), reference.none_of_these(z))
    assert again.about["epoch"] == 3
    file.write_bytes(file.read_bytes()[:-99])
    with pytest.raises(InputError, match=r"a\.npz is invalid"):
        load_reference(file)


@pytest.mark.parametrize("base", [rng.normal(size=(n, 8)) for n in (1, 2, 3)] + [np.ones((30, 8))])
def test_too_few_base_images_or_a_collapsed_encoder(base):
    with pytest.raises(InputError, match=f"at least 4 base images.*, got {len(base)}"):
        fit_reference(rng.normal(size=(2, 1, 8)), np.array([0, 1]), base, {})
