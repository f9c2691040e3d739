"""No training step waits for the GPU, checked with fake tensors, without a GPU."""

import functools
import types

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import main_distill
import main_moco
from benchmarks.plain import PlainMoCo, plain_encoder
from moco.batch_augment import apply, draw_views, to_float
from moco.builder import MoCo, Student
from models import build_encoder

GPU = torch.device("cuda")
SETTINGS = types.SimpleNamespace(
    epochs=10, alpha=0.7, pseudo_label="adaptive-hard", cls_loss="paper", losses="con+cls",
    p_label=True, correction="none",
)  # fmt: skip


class Copies(TorchDispatchMode):
    """Record each operation that copies values from one device to another."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        sources, targets = (
            {x.device.type for x in tree_leaves(part) if isinstance(x, torch.Tensor) and x.ndim}
            for part in ((args, kwargs), result)
        )
        if sources and targets and sources != targets:
            self.found.append(str(operation))
        return result


def to_gpu(model):
    for module in model.modules():
        for name, theta in module._parameters.items():
            if theta is not None:
                on_gpu = theta.detach().to(GPU)
                module._parameters[name] = torch.nn.Parameter(on_gpu, theta.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to(GPU)
    return model.train()


def copies_in_a_step(kind, make_encoder, arch):
    encoder = functools.partial(make_encoder, arch, 16)
    more = {"n_way": 3} if kind is Student else {}
    model = kind(encoder, embedding_dim=16, queue_size=32, batchnorm_groups=2, **more)
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_gpu(model)
        pixels = torch.zeros(20, 32, 32, 3, dtype=torch.uint8, device=GPU)
        rows, step = torch.arange(8, device=GPU), main_moco.step
        if kind is Student:
            y = torch.zeros(20, 3, device=GPU)
            step = main_distill.distillation_step(
                SETTINGS, model, y, np.zeros((20, 16), np.float32)
            )
        with Copies() as copies:
            parameters = draw_views(rows, 32, 2, seed=0, epoch=1, aug_plus=True)
            views = [apply(to_float(pixels[rows]), p) for p in parameters]
            loss = step(model, views, rows, 3)["loss"]
    assert loss.device.type == "cuda"
    return copies.found


@pytest.mark.parametrize("arch", ["conv4", "resnet12"])
@pytest.mark.parametrize("kind", [MoCo, Student])
def test_views_and_losses_stay_on_the_gpu(kind, arch):
    assert copies_in_a_step(kind, build_encoder, arch) == []


def test_copies_and_waits_are_detected():
    with FakeTensorMode(), Copies() as copies:
        torch.zeros(3).to(GPU)
    assert copies.found
    with pytest.raises(DataDependentOutputException):  # its DropBlock reads a value
        copies_in_a_step(PlainMoCo, plain_encoder, "resnet12")
