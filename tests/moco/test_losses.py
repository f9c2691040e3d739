"""The equations against loops written from METHOD.md, one number at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from moco import losses


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)

    def rows(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, queue = (F.normalize(rows(n, 6), dim=1) for n in (5, 5, 9))
    y = rows(5, 3).softmax(dim=1)
    return q, k, queue, y, 2 * rows(5, 3)


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def test_contrastive_loss_is_eq_1(batch):
    q, k, queue, _, _ = (x.tolist() for x in batch)
    tau = 0.07
    expected = 0.0
    for i in range(5):
        positive = math.exp(dot(q[i], k[i]) / tau)
        negatives = sum(math.exp(dot(q[i], key) / tau) for key in queue)
        expected -= math.log(positive / (positive + negatives)) / 5
    logits = losses.contrastive_logits(*batch[:3], tau)
    assert logits.shape == (5, 10)
    assert losses.contrastive_loss(logits).item() == pytest.approx(expected)


def test_contrastive_loss_by_chance():
    assert losses.contrastive_loss(torch.zeros(4, 1281)).item() == pytest.approx(math.log(1281))


def test_distillation_loss_is_eq_2():
    assert losses.distillation_loss(torch.tensor(1.5), torch.tensor(0.25)).item() == 1.75


def test_cross_entropy_is_eq_3(batch):
    y, logits = batch[3].tolist(), batch[4].tolist()
    expected = -sum(
        y[i][n] * math.log(softmax(logits[i])[n]) for i in range(5) for n in range(3)
    ) / 5  # fmt: skip
    assert losses.cross_entropy(*batch[3:]).item() == pytest.approx(expected)
    labels = torch.tensor([2, 0, 1, 1, 0])
    hard = F.one_hot(labels, 3).double()
    plain = F.cross_entropy(batch[4], labels)
    torch.testing.assert_close(losses.cross_entropy(hard, batch[4]), plain)


def test_kl_divergence_is_eq_4(batch):
    y, logits = batch[3].tolist(), batch[4].tolist()
    expected = sum(
        y[i][n] * math.log(y[i][n] / softmax(logits[i])[n]) for i in range(5) for n in range(3)
    ) / 5  # fmt: skip
    assert losses.kl_divergence(*batch[3:]).item() == pytest.approx(expected)
    assert losses.kl_divergence(batch[4].softmax(dim=1), batch[4]).item() == pytest.approx(0)


def test_kl_divergence_takes_hard_labels(batch):
    hard = F.one_hot(torch.tensor([2, 0, 1, 1, 0]), 3).double()
    torch.testing.assert_close(
        losses.kl_divergence(hard, batch[4]), losses.cross_entropy(hard, batch[4])
    )


@pytest.mark.parametrize("epoch", [0, 30, 199])
def test_adaptive_labels_are_eq_5(batch, epoch):
    y, logits = batch[3].tolist(), batch[4].tolist()
    alpha_t = 0.7 * epoch / 200
    expected = [
        [(1 - alpha_t) * y[i][n] + alpha_t * softmax(logits[i])[n] for n in range(3)]
        for i in range(5)
    ]
    found = losses.adaptive_labels(*batch[3:], epoch, 200, 0.7)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_no_gradient_through_the_target(batch):
    logits = batch[4].clone().requires_grad_()
    target = losses.adaptive_labels(batch[3], logits, 100, 200, 0.7)
    assert not target.requires_grad
    losses.cross_entropy(target, logits).backward()
    # The gradient of cross entropy with a constant target is (p′ − y_adpt) / B.
    torch.testing.assert_close(logits.grad, (batch[4].softmax(dim=1) - target) / 5)
