"""Views and steps on a GPU: as on the CPU, and without waiting for the GPU.

GPU_TESTS_ON=cpu runs all of this on the CPU, to test the tests.
"""

import contextlib
import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import main_moco
from moco.batch_augment import apply, draw_parameters, draw_views, to_float
from moco.builder import GroupedBatchNorm2d, MoCo, Student
from moco.config import Distillation
from moco.distill import distillation_step
from moco.loader import BatchViews, EpochBatches
from models import build_encoder
from models.resnet12 import DropBlock
from trainer.optimizer import sgd
from trainer.performance import prepare
from trainer.settings import resolve

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"
)
CPU = torch.device("cpu")
N_WAY, BATCH = 3, 8
BACKBONES = [("conv4", 32), ("resnet12", 84)]


@pytest.fixture(autouse=True)
def precise():
    """32 bits are 32 bits, unless a test says otherwise; afterwards, as it was before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    exact()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def exact() -> None:
    """Turn TF32 off."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def no_waiting():
    """Raise RuntimeError where the block waits for the GPU."""
    if DEVICE.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_stage(stage: str, arch: str, device: torch.device, amp=False, compile=False, images=32):
    """A stage's model, which is the same on every device, its step and its optimizer."""
    torch.manual_seed(0)
    make_encoder = functools.partial(build_encoder, arch)
    how = {"queue_size": 64, "batchnorm_groups": 2}
    if stage == "a":
        model, step = MoCo(make_encoder, **how), main_moco.step
        prepare(model, device, amp, compile)
    else:
        model = Student(make_encoder, n_way=N_WAY, **how)
        prepare(model, device, amp, compile)
        args = resolve(Distillation, dict.fromkeys(("data", "savedir", "model_path"), Path("-")))
        y = F.one_hot(torch.arange(images, device=device) % N_WAY, N_WAY).float()
        teacher = np.zeros((images, 128), np.float32)
        step = distillation_step(args, model, y, teacher)
    return model.train(), step, sgd(model, lr=0.03, momentum=0.9, wd=1e-4)


def take_step(model, step, optimizer, views, rows) -> dict:
    """One step of training; returns its statistics."""
    optimizer.zero_grad(set_to_none=True)
    statistics = step(model, views, rows, 1)
    statistics["loss"].backward()
    optimizer.step()
    return statistics


def some_pixels(images: int, size: int) -> np.ndarray:
    """Smooth random images, as the cache of decoded images holds them: M×S×S×3."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(images, 3, 6, 6, generator=generator)
    large = F.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    return (large * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize("arch, size", BACKBONES)
@pytest.mark.parametrize("stage", ["a", "d"])
def test_a_step_does_not_wait(stage, arch, size):
    model, step, optimizer = make_stage(stage, arch, DEVICE, amp=True)
    batches = EpochBatches(32, BATCH, seed=0)
    loader = iter(BatchViews(some_pixels(32, size), batches, 2, 0, False, DEVICE))
    take_step(model, step, optimizer, *next(loader))  # allocates, and chooses algorithms
    losses = []
    with no_waiting():
        for views, rows in loader:
            losses.append(take_step(model, step, optimizer, views, rows)["loss"].detach())
    assert len(losses) == 3 and torch.stack(losses).isfinite().all()


def without_chance(model: nn.Module) -> None:
    """Turn dropout off: its random numbers are not the same on other devices."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | DropBlock):
            module.eval()


@pytest.mark.parametrize("arch, size", BACKBONES)
@pytest.mark.parametrize("stage", ["a", "d"])
def test_a_step_is_as_on_the_cpu(stage, arch, size, monkeypatch):
    shuffled = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "randperm", lambda n, device=CPU: shuffled.to(device))
    views = torch.rand(2, BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, device in (("gpu", DEVICE), ("cpu", CPU)):
        model, step, optimizer = make_stage(stage, arch, device)
        exact()  # prepare() has allowed TF32
        without_chance(model)
        before = weights(model)
        rows = torch.arange(BATCH, device=device)
        statistics = take_step(model, step, optimizer, list(views.to(device)), rows)
        found[name] = float(statistics["loss"].detach()), weights(model) - before, model.queue.cpu()
    (loss, moved, queue), (cpu_loss, cpu_moved, cpu_queue) = found["gpu"], found["cpu"]
    assert loss == pytest.approx(cpu_loss, rel=1e-4)
    assert (moved - cpu_moved).norm() < 1e-2 * cpu_moved.norm()
    torch.testing.assert_close(queue, cpu_queue, atol=1e-3, rtol=0)


def weights(model: nn.Module) -> torch.Tensor:
    """All that is trained, in one row, on the CPU."""
    trained = [p.detach().flatten() for p in model.parameters() if p.requires_grad]
    return torch.cat(trained).cpu()


@pytest.mark.parametrize("arch, size", BACKBONES)
def test_mixed_precision_is_near(arch, size):
    views = torch.rand(2, BATCH, 3, size, size, device=DEVICE)
    losses = []
    for amp in (False, True):
        model, step, _ = make_stage("a", arch, DEVICE, amp)
        without_chance(model)
        torch.manual_seed(0)
        losses.append(float(step(model, list(views), torch.arange(BATCH), 0)["loss"].detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("arch, size", BACKBONES)
@pytest.mark.parametrize("stage", ["a", "d"])
def test_compiled_steps_equal_others(stage, arch, size, monkeypatch):
    """On a GPU, the passes of both encoders and the backward pass are CUDA graphs, each of them."""
    counters.clear()
    replayed, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: replayed.append(graph) or replay(graph)
    )
    views = torch.rand(6, 2, BATCH, 3, size, size, device=DEVICE)
    found = []
    for compile in (False, True):
        model, step, optimizer = make_stage(stage, arch, DEVICE, compile=compile)
        exact()
        without_chance(model)
        torch.manual_seed(0)
        rows = torch.arange(BATCH, device=DEVICE)
        steps = [take_step(model, step, optimizer, list(pair), rows) for pair in views]
        found.append([float(statistics["loss"].detach()) for statistics in steps])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    if DEVICE.type == "cuda":
        assert counters["inductor"]["cudagraph_skips"] == 0
        assert len(replayed) >= 3 * 3  # the first steps warm up and record


@pytest.mark.parametrize("aug_plus", [False, True])
def test_compiled_views_equal_others(aug_plus):
    pixels, rows = torch.from_numpy(some_pixels(16, 84)).to(DEVICE), torch.arange(16, device=DEVICE)
    parameters = draw_views(rows, 84, 2, 0, 3, aug_plus)
    images, compiled = to_float(pixels), torch.compile(apply, dynamic=False)
    for found, expected in ((compiled(images, p), apply(images, p)) for p in parameters):
        assert ((found - expected).abs() < 1e-3).float().mean() > 0.99


def test_grouped_batchnorm():
    x = torch.randn(BATCH, 16, 9, 9, generator=torch.Generator().manual_seed(0)) * 3 + 1
    found = []
    for device in (DEVICE, CPU):
        layer = GroupedBatchNorm2d(16, 4).to(device).train()
        here = x.to(device).to(memory_format=torch.channels_last).requires_grad_()
        out = layer(here)
        out.square().sum().backward()
        found.append([out, here.grad, layer.running_mean, layer.running_var])
    for gpu, cpu in zip(*found):
        torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("aug_plus", [False, True])
def test_views_are_as_on_the_cpu(aug_plus):
    images, rows = torch.from_numpy(some_pixels(64, 84)), torch.arange(64)

    def views_on(device: torch.device) -> list[torch.Tensor]:
        parameters = draw_views(rows.to(device), 84, 2, 0, 3, aug_plus)
        return [apply(to_float(images.to(device)), p) for p in parameters]

    there, here = views_on(DEVICE), views_on(CPU)
    p, q = (draw_parameters(7, rows.to(device), 84, aug_plus) for device in (DEVICE, CPU))
    same = (p.height.cpu() == q.height) & (p.width.cpu() == q.width) & (p.top.cpu() == q.top)
    assert same.float().mean() >= 0.95  # rounding may move a crop by a pixel
    assert torch.equal(p.flip.cpu(), q.flip) and torch.equal(p.order.cpu(), q.order)
    for gpu, cpu in zip(there, here):
        off = (gpu.cpu() - cpu).abs().amax(dim=(1, 2, 3))
        assert (off < 1e-3).float().mean() >= 0.95
    torch.set_float32_matmul_precision("high")  # as in training: TF32
    for gpu, cpu in zip(views_on(DEVICE), here):
        assert (gpu.cpu() - cpu).abs().mean() < 1 / 255
