"""Balancing pseudo labels, against values computed by hand."""

import math

import pytest
import torch

from moco import balance


@pytest.fixture
def p():
    """Probabilities of 40 images for 3 classes, of which the first has nearly all."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return (logits + torch.tensor([4.0, 0.0, -1.0])).softmax(dim=1)


def test_alignment_by_hand():
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64)  # means 0.7, 0.3
    expected = []
    for a, b in p.tolist():
        total = a / 0.7 + b / 0.3
        expected.append([a / 0.7 / total, b / 0.3 / total])
    torch.testing.assert_close(balance.align(p), torch.tensor(expected, dtype=torch.float64))


def test_alignment_leaves_balanced_labels_and_brings_others_closer_to_the_prior(p):
    even = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    torch.testing.assert_close(balance.align(even), even)
    before, after = (rows.mean(dim=0).max() for rows in (p, balance.align(p)))
    assert before > 0.8 and after < before - 0.1


def test_sinkhorn_gives_each_class_the_same_share(p):
    assigned = balance.sinkhorn(p)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(40, dtype=torch.float64))
    expected = torch.full((3,), 40 / 3, dtype=torch.float64)
    torch.testing.assert_close(assigned.sum(dim=0), expected, atol=1e-4, rtol=0)
    # Rows and columns of p are scaled, so that ratios of ratios stay.
    log_odds = (assigned / p).log()
    assert (log_odds[:, 0] - log_odds[:, 1]).std() < 1e-9
    assert balance.sinkhorn(p.float()).dtype == torch.float32


@pytest.mark.parametrize("method", ["align", "sinkhorn"])
def test_a_class_without_any_probability_stays_without(method):
    p = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]])
    found = balance.balance(method, p).probabilities
    assert found.isfinite().all() and found[:, 2].tolist() == [0, 0]


def test_logit_adjustment_is_the_log_of_the_shares():
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    found = balance.balance("logit-adjust", p)
    assert found.bias.tolist() == pytest.approx([math.log(0.7), math.log(0.3)])
    # With it, a student that knows nothing but the shares has logits 0: p′ is the shares.
    torch.testing.assert_close(found.bias.softmax(dim=0), p.mean(dim=0))
    assert found.weights.tolist() == [1, 1] and found.probabilities is p


def test_selection_keeps_the_most_confident_of_each_class():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.95, 0.05]])
    assert balance.balance("select", p).weights.tolist() == [0, 0, 0, 2.5, 2.5]
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4]])  # one class was never predicted
    assert balance.balance("select", p).weights.tolist() == [1, 1]


def test_weights_by_class_add_up_alike():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    assert balance.balance("reweight", p).weights.tolist() == pytest.approx([2 / 3] * 3 + [2])


def test_weights_by_confidence():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    certain = 1 - (-0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / math.log(2)
    expected = [3 * c / (1 + certain) for c in (1, 0, certain)]
    assert balance.balance("confidence", p).weights.tolist() == pytest.approx(expected)


def test_none_changes_nothing(p):
    found = balance.balance("none", p)
    assert found.probabilities is p
    assert found.weights.unique().tolist() == [1] and found.bias.unique().tolist() == [0]
