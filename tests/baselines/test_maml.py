"""MAML's inner loop and DAML's loss, against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines.daml import daml_loss
from baselines.episodes import EpisodicModel, labels_of
from baselines.maml import MAML, inner_loop, keep_statistics, meta_step
from conftest import states_equal
from models import build_encoder


@pytest.mark.parametrize(
    "order, expected", [(1, (4.8, 5.04, 5.232)), (2, (3.84, 3.2256, 2.678784))]
)
def test_gradient_of_a_quadratic(order, expected):
    """Support loss ½a(θ−c)², query loss ½b(θ−d)²: the second-order gradient is b(θ_s−d)(1−αa)^s."""
    a, c, b, d, alpha = 2, 1, 3, -1, 0.1
    for steps, gradient in enumerate(expected, start=1):
        theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        adapted = inner_loop({"x": theta}, lambda t: a * (t["x"] - c) ** 2 / 2, steps, alpha, order)
        (b * (adapted["x"] - d) ** 2 / 2).backward()
        assert theta.grad.item() == pytest.approx(gradient, rel=1e-12)


class Tiny(nn.Module):
    """A smooth network in double precision, with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        )
        self.double()

    forward = property(lambda self: self.net)
    logits = MAML.logits


def tiny_query_loss(model, theta, x, order):
    """The query loss after two inner steps, with five images each of three classes."""
    y = torch.arange(3).repeat(5)
    adapted = inner_loop(theta, lambda t: F.cross_entropy(model.logits(t, x[0]), y), 2, 0.3, order)
    return F.cross_entropy(model.logits(adapted, x[1]), y)


def test_second_order_gradient_equals_finite_differences():
    torch.manual_seed(0)
    model, x = Tiny(), torch.randn(2, 15, 1, 4, 4, dtype=torch.float64)
    theta = dict(model.named_parameters())
    second, first = (
        torch.autograd.grad(tiny_query_loss(model, theta, x, order), list(theta.values()))
        for order in (2, 1)
    )
    apart = 0.0
    for name, exact, approximate in zip(theta, second, first):
        index = tuple(0 for _ in exact.shape)
        losses = []
        for step in (1e-5, -1e-5):
            moved = {n: w.detach().clone() for n, w in theta.items()}
            moved[name][index] += step
            moved = {n: w.requires_grad_() for n, w in moved.items()}
            losses.append(tiny_query_loss(model, moved, x, 1).item())
        assert exact[index].item() == pytest.approx(
            (losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9
        )
        apart += abs(exact[index].item() - approximate[index].item())
    assert apart > 1e-3  # the first-order gradient differs


def maml(**options):
    torch.manual_seed(0)
    options = {"inner_lr": 0.05, "inner_steps": 2, "test_steps": 3, **options}
    return MAML("conv4", 32, 3, **options).train()


def episode(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 3, 32, 32, generator=generator), torch.rand(
        9, 3, 32, 32, generator=generator
    )


@pytest.mark.parametrize("order", [1, 2])
def test_without_inner_steps_the_gradient_is_the_plain_one(order):
    model, (support, query) = maml(inner_lr=0.0, order=order), episode()
    meta_step(model, [(support, query)], 3)
    theta = dict(model.named_parameters())
    plain = F.cross_entropy(model.logits(theta, query), labels_of(query, 3))
    for found, expected in zip(theta.values(), torch.autograd.grad(plain, list(theta.values()))):
        assert torch.allclose(found.grad, expected, atol=1e-7)


def test_the_gradient_is_the_mean_over_tasks():
    model = maml()
    single = []
    for task in (episode(0), episode(1)):
        model.zero_grad()
        meta_step(model, [task], 3)
        single.append([w.grad.clone() for w in model.parameters()])
    model.zero_grad()
    values = meta_step(model, [episode(0), episode(1)], 3, lambda loss: {"loss": loss})
    for w, a, b in zip(model.parameters(), *single):
        assert torch.allclose(w.grad, (a + b) / 2, atol=1e-7)
    assert not values["loss"].requires_grad


def test_the_first_order_gradient_is_that_at_the_adapted_weights():
    model, (support, query) = maml(), episode()
    meta_step(model, [(support, query)], 3)
    labels = labels_of(support, 3)
    theta = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    for _ in range(model.inner_steps):  # plain gradient descent
        loss = F.cross_entropy(model.logits(theta, support), labels)
        gradients = torch.autograd.grad(loss, list(theta.values()))
        theta = {
            n: (w - 0.05 * g).detach().requires_grad_()
            for (n, w), g in zip(theta.items(), gradients)
        }
    loss = F.cross_entropy(model.logits(theta, query), labels_of(query, 3))
    for w, expected in zip(model.parameters(), torch.autograd.grad(loss, list(theta.values()))):
        assert torch.allclose(w.grad, expected, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_the_inner_loop_changes_neither_weights_nor_statistics(order):
    model = maml(order=order)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    meta_step(model, [episode()], 3)
    model.adapt(episode()[0], torch.arange(3).repeat_interleave(2))
    assert states_equal(model.state_dict(), before)


def test_the_support_statistics_are_those_of_training():
    """In evaluation mode the support set gets the logits that it has as a batch, and BatchNorm's
    running statistics are the biased mean and variance of its input."""
    model, (support, _) = maml(), episode()
    expected = model(support)
    keep_statistics(model, support)
    assert not model.training
    assert torch.allclose(model(support), expected, atol=1e-5)
    first, (conv, norm, *_) = support, model.query_encoder.backbone.blocks[0]
    x = conv(first).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, x.mean(1), atol=1e-6)
    assert torch.allclose(norm.running_var, ((x - x.mean(1, keepdim=True)) ** 2).mean(1), atol=1e-6)


def test_adapted_by_the_given_number_of_steps():
    """More steps fit the support set better; none leaves the weights alone."""
    support, _ = episode()
    labels = torch.arange(3).repeat_interleave(2)
    fits = [
        maml(test_steps=steps).adapt(support, labels)(support)[range(6), labels].mean().item()
        for steps in (0, 5, 40)
    ]
    assert fits[0] < fits[1] < fits[2] and fits[2] > 0.6


def test_relabelling_permutes_the_probabilities_of_a_zero_head():
    model, (support, query) = maml(zero_head=True), episode()
    labels, order = torch.arange(3).repeat_interleave(2), torch.tensor([2, 0, 1])
    one, other = model.adapt(support, labels)(query), model.adapt(support, order[labels])(query)
    assert torch.allclose(one, other[:, order], atol=1e-5)
    assert (one.std(dim=0) > 1e-5).all()
    learned = maml()  # the order matters to a learned head
    one, other = learned.adapt(support, labels)(query), learned.adapt(support, order[labels])(query)
    assert not torch.allclose(one, other[:, order], atol=1e-5)


def test_dropout_is_off_in_episodes():
    class Model(EpisodicModel):
        def __init__(self):
            super().__init__()
            self.encoder = build_encoder("resnet12", None)

    model = Model().train()
    modes = {type(module).__name__: module.training for module in model.encoder.modules()}
    assert modes["BatchNorm2d"] and not (modes["Dropout"] or modes["DropBlock"])
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize(
    "loss, expected, slope",
    [(0.1, 1.05361e-6, 6.4e-5), (0.3, 8.6672e-4, 0.0179), (0.5, 0.0216608, 0.279),
     (math.log(2), 0.189025, 1.88), (0.9, 1.35965, 13.5), (0.99, 4.37947, 117),
     (1, 9.21034, 46.1), (math.log(3), 14.7400, 67.1)],
)  # fmt: skip
def test_daml_loss(loss, expected, slope):
    x = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    value = daml_loss(x, eta=5, eps=1e-4)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert x.grad.item() == pytest.approx(slope, rel=0.01)


def test_daml_weighs_each_task_by_itself():
    easy, hard = torch.tensor(0.3), torch.tensor(math.log(3))
    ratio = daml_loss(hard, 5, 1e-4) / daml_loss(easy, 5, 1e-4)
    assert ratio.item() == pytest.approx(14.74 / 8.6672e-4, rel=1e-3)
    assert daml_loss(easy, 0, 1e-4).item() == pytest.approx(-math.log(0.7), rel=1e-5)
