"""The equations against naive loops over scalars."""

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


@pytest.mark.parametrize(
    "kinds, expected", [("con+cls", 1.75), ("cls", 0.25), ("con+reg", 5.5), ("con", 1.5)]
)
def test_distillation_loss_is_eq_2(kinds, expected):
    values = {"con": 1.5, "cls": 0.25, "reg": 4.0}
    parts = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    loss = losses.distillation_loss(parts, kinds)
    assert loss.item() == expected
    loss.backward()  # reaches every part
    assert {name: part.grad.item() for name, part in parts.items()} == {
        name: float(name in kinds.split("+")) for name in parts
    }


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
    found = losses.adaptive_labels(batch[3], batch[4].softmax(dim=1), epoch, 200, 0.7)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def temperatures_by_hand(v, gamma):
    beta = [gamma * value / sum(v) + (1 - gamma) for value in v]
    return [value + 1 - max(beta) for value in beta]


@pytest.mark.parametrize("v", [[0.2, 0.7, 0.4], [1.0, 1.0, 1.0], [0.0, 3.0, 0.0]])
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_class_temperatures_are_of_eqs_6_to_9(v, gamma):
    found = losses.class_temperatures(torch.tensor(v, dtype=torch.float64), gamma)
    assert found.tolist() == pytest.approx(temperatures_by_hand(v, gamma))
    assert found.max() == 1 and found.min() >= 1 - gamma - 1e-9
    assert found.argmax() == max(range(3), key=lambda n: v[n])


def test_zero_dispersions_give_no_correction():
    assert losses.class_temperatures(torch.zeros(3), 0.1).tolist() == [1, 1, 1]


def test_corrected_logits_divide_each_class(batch):
    tau = torch.tensor([1.0, 0.95, 0.9], dtype=torch.float64)
    found = losses.corrected_logits(batch[4], tau).tolist()
    for row, expected in zip(found, batch[4].tolist()):
        assert row == pytest.approx([value / t for value, t in zip(expected, tau.tolist())])


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def test_class_temperatures_with_the_factor_of_the_released_code():
    """Their 1-shot constants; dividing by the maximum is a second-order difference."""
    v = torch.tensor([0.3320513, 0.35115695, 0.31679174], dtype=torch.float64)
    theirs = 3 * v * 0.1 + 0.9
    tau = losses.class_temperatures(v, 0.1, scale=3)
    torch.testing.assert_close(tau, theirs / theirs.max(), atol=1e-4, rtol=0)
    once = losses.class_temperatures(v, 0.1)
    torch.testing.assert_close(1 - tau, 3 * (1 - once))


@pytest.mark.parametrize("kind", ["normalized", "norm", "raw"])
def test_dispersions_are_eq_8(kind):
    embeddings = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double() * 3
    labels = torch.arange(40) % 3
    expected = []
    for n in range(3):
        rows = [row for row, label in zip(embeddings.tolist(), labels.tolist()) if label == n]
        lengths = [math.sqrt(dot(row, row)) for row in rows]
        if kind == "norm":
            expected.append(variance(lengths))
            continue
        if kind == "normalized":
            rows = [[v / length for v in row] for row, length in zip(rows, lengths)]
        expected.append(sum(variance(column) for column in zip(*rows)) / 6)
    assert losses.dispersions(embeddings, labels, 3, kind).tolist() == pytest.approx(expected)
    with_empty = losses.dispersions(embeddings, labels, 4, kind)
    assert with_empty.tolist() == pytest.approx([*expected, 0])


def test_regression_is_the_mean_absolute_difference():
    teacher, student = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 4.0], [3, 5]])
    assert losses.regression(teacher, student).item() == pytest.approx((1 + 2 + 0 + 1) / 4)


def released_by_hand(y, logits):
    total = 0.0
    for target, row in zip(y, logits):
        target = softmax([value / 2 for value in target])
        found = softmax([value / 2 for value in softmax(row)])
        total += sum(t * math.log(t / p) for t, p in zip(target, found))
    return 4 * total / len(y)


def test_released_loss(batch):
    y, logits = batch[3:]
    expected = released_by_hand(y.tolist(), logits.tolist())
    assert losses.released_loss(y, logits).item() == pytest.approx(expected)


PLAIN = torch.ones(3, dtype=torch.float64)
TAU = torch.tensor([0.92, 1.0, 0.95], dtype=torch.float64)


@pytest.mark.parametrize("tau", [PLAIN, TAU])
@pytest.mark.parametrize("kind", ["adaptive-hard", "adaptive-soft", "hard", "soft"])
def test_classification_loss(batch, kind, tau):
    logits = batch[4]
    y = batch[3]
    if "hard" in kind:
        y = F.one_hot(y.argmax(dim=1), 3).double()
    target = y
    if "adaptive" in kind:  # mixed with the uncorrected p′
        target = 0.65 * y + 0.35 * logits.softmax(dim=1)
    p = [softmax(row) for row in (logits / tau).tolist()]
    expected = 0.0
    for t_row, p_row in zip(target.tolist(), p):
        for t, q in zip(t_row, p_row):
            if t > 0:
                expected -= t * (math.log(q) - (math.log(t) if "soft" in kind else 0)) / 5
    args = (100, 200, 0.7, kind)
    found = losses.classification_loss(y, logits, tau, *args, "paper")
    assert found.item() == pytest.approx(expected)
    if tau is PLAIN:
        assert torch.equal(losses.classification_loss(y, logits, None, *args, "paper"), found)
    released = losses.classification_loss(y, logits, None, *args, "released")
    assert released.item() == pytest.approx(released_by_hand(target.tolist(), logits.tolist()))
    released = losses.classification_loss(y, logits, tau, *args, "released")
    by_hand = released_dic_by_hand(target.tolist(), logits.tolist(), tau.tolist())
    assert released.item() == pytest.approx(by_hand)


def released_dic_by_hand(y, logits, tau):
    """A second softmax of both, of probabilities divided by the class temperatures."""
    total = 0.0
    for target, row in zip(y, logits):
        target = softmax([value / t for value, t in zip(target, tau)])
        found = softmax([value / t for value, t in zip(softmax(row), tau)])
        total += sum(t * math.log(t / p) for t, p in zip(target, found))
    return (sum(tau) / len(tau)) ** 2 * total / len(y)


def test_no_gradient_flows_through_the_labels_in_the_released_loss_of_dic(batch):
    logits = batch[4].clone().requires_grad_()
    target = (0.65 * batch[3] + 0.35 * logits.softmax(dim=1)).detach()
    losses.released_loss(target, logits, TAU).backward()
    again = batch[4].clone().requires_grad_()
    args = (100, 200, 0.7, "adaptive-soft", "released")
    losses.classification_loss(batch[3], again, TAU, *args).backward()
    torch.testing.assert_close(again.grad, logits.grad)


def test_gradient_flows_through_the_labels_in_the_released_loss_alone(batch):
    def gradient(cls_loss, kind):
        logits = batch[4].clone().requires_grad_()
        args = (None, 100, 200, 0.7, kind, cls_loss)
        losses.classification_loss(batch[3], logits, *args).backward()
        return logits.grad

    # The gradient of cross entropy with a constant target is (p′ − y_adpt) / B.
    p = batch[4].softmax(dim=1)
    target = 0.65 * batch[3] + 0.35 * p
    torch.testing.assert_close(gradient("paper", "adaptive-hard"), (p - target) / 5)
    logits = batch[4].clone().requires_grad_()
    losses.released_loss(target, logits).backward()
    assert not torch.allclose(gradient("released", "adaptive-hard"), logits.grad)
