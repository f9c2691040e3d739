"""The plain and the fast path compute the same, so that their times are comparable."""

import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

import main_distill
import main_moco
from benchmarks import plain
from datasets import open_dataset
from datasets.cache import cached
from moco.builder import MoCo, Student
from moco.evaluate import encode
from models import build_encoder
from models.resnet12 import ANNEALING_STEPS, DropBlock
from trainer.optimizer import sgd
from trainer.performance import prepare

SETTINGS = types.SimpleNamespace(
    epochs=10, alpha=0.7, pseudo_label="adaptive-hard", cls_loss="paper", losses="con+cls",
    p_label=True, correction="none",
)  # fmt: skip


def make(kind, make_encoder, arch, **more):
    torch.manual_seed(0)
    encoder = functools.partial(make_encoder, arch, 16)
    model = kind(
        make_encoder=encoder, embedding_dim=16, queue_size=24, encoder_momentum=0.9,
        batchnorm_groups=2, **more
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, DropBlock):
            module.steps.fill_(ANNEALING_STEPS)
    return model.train()


def train(model, step, optimizer, size):
    """Return the losses of three steps and the gradient of the first."""
    torch.manual_seed(1)
    views = torch.rand(3, 2, 8, 3, size, size)
    losses = []
    for number, pair in enumerate(views):
        torch.manual_seed(number)  # for dropout and the shuffling of keys
        optimizer.zero_grad()
        loss = step(model, list(pair), torch.arange(8), 5)["loss"]
        loss.backward()
        if number == 0:
            parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            gradient = torch.cat(parts).clone()
        optimizer.step()
        losses.append(loss.item())
    return losses, gradient


def both(stage, arch, size, change=lambda model: model):
    kinds = {"a": (MoCo, plain.PlainMoCo), "d": (Student, plain.PlainStudent)}[stage]
    found = []
    for kind, encoder, make_sgd in zip(
        kinds, (build_encoder, plain.plain_encoder), (sgd, plain.plain_sgd)
    ):
        model = change(make(kind, encoder, arch, **({"n_way": 3} if stage == "d" else {})))
        step = main_moco.step
        if stage == "d":
            y = nn.functional.one_hot(torch.arange(8) % 3, 3).float()
            step = main_distill.distillation_step(SETTINGS, model, y, np.zeros((8, 16), np.float32))
        losses, gradient = train(model, step, make_sgd(model, 0.03, 0.9, 1e-4), size)
        found.append((losses, gradient, model.state_dict()))
    return found


def assert_same(fast, slow):
    assert fast[0] == pytest.approx(slow[0], rel=1e-3, abs=1e-4) and len(set(fast[0])) == 3
    assert (fast[1] - slow[1]).norm() < 0.01 * slow[1].norm()
    assert fast[2].keys() == slow[2].keys()
    for name in ("queue", "key_encoder.head.weight"):
        torch.testing.assert_close(fast[2][name], slow[2][name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "arch, size", [("conv4", 32), pytest.param("resnet12", 96, marks=pytest.mark.slow)]
)
def test_stage_a(arch, size):
    """At the final rate of DropBlock, with the same random masks."""
    assert_same(*both("a", arch, size))


def without_dropping(model):
    """Remove dropout, which differs if a view is encoded twice."""
    for module in model.modules():
        if hasattr(module, "drop"):
            module.drop = nn.Identity()
    return model


@pytest.mark.parametrize("arch", ["conv4", "resnet12"])
def test_stage_d(arch):
    assert_same(*both("d", arch, 32, without_dropping))


def test_memory_format_does_not_matter():
    def prepared(model):
        if type(model) is MoCo:
            prepare(model, torch.device("cpu"))
        return without_dropping(model)

    assert_same(*both("a", "resnet12", 32, prepared))


@pytest.mark.parametrize("size", [2, 5, 9])
def test_dropblock(size):
    x, fast, slow = torch.randn(4, 6, size, size), DropBlock(), plain.IndexedDropBlock()
    fast.steps.fill_(ANNEALING_STEPS)
    slow.steps.fill_(ANNEALING_STEPS)
    torch.manual_seed(2)
    expected = slow(x)
    torch.manual_seed(2)
    torch.testing.assert_close(fast(x), expected)
    assert (expected == 0).any() and (expected != 0).any()


def test_a_student_encodes_the_query_view_twice():
    model, seen = make(plain.PlainStudent, plain.plain_encoder, "conv4", n_way=3), []
    model.query_encoder.register_forward_hook(lambda *_: seen.append(1))
    model(*torch.rand(2, 4, 3, 32, 32))
    assert len(seen) == 2


def test_encoding(data, tmp_path):
    rare = open_dataset(data).rare
    torch.manual_seed(0)
    fast = build_encoder("resnet12", 8)
    torch.manual_seed(0)
    slow = plain.plain_encoder("resnet12", 8)
    prepare(fast, torch.device("cpu"))
    found = encode(fast, cached(rare, 32, tmp_path), 32)
    expected = plain.plain_encode(slow, rare, 32, 0, torch.device("cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
