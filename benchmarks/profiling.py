"""Where the time of a turn goes."""

import functools
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import record_function

from moco.builder import MoCo
from models.resnet12 import DropBlock

PARTS = (  # the first that an operation's name contains
    ("conv", "convolution"),
    ("batch_norm", "BatchNorm"),
    ("cat", "BatchNorm"),  # of its groups
    ("relu", "ReLU"),
    ("max_pool", "pooling"),
    ("dropout", "dropout"),
    ("bernoulli", "dropout"),
    ("DataLoader", "waiting for data"),
)


def profile(model: nn.Module, turn: Callable[[], int], device: torch.device) -> dict[str, float]:
    """The share of each part in the time of a turn, of those that take 0.5 % or more. Not for what
    is compiled: its kernels are of no one part."""
    regions = [(m, "forward", "DropBlock") for m in model.modules() if isinstance(m, DropBlock)]
    if isinstance(model, MoCo):
        regions.append((model, "update_key_encoder", "momentum update"))
    for owner, name, part in regions:
        setattr(owner, name, _named(getattr(owner, name), part))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        turn()
    for owner, name, _ in regions:
        delattr(owner, name)
    seconds: dict[str, float] = defaultdict(float)
    for event in found.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: its time is also that of the operation that started it
        own = event.self_cpu_time_total
        if device.type == "cuda":
            own = event.self_device_time_total
        seconds[part_of(event)] += own
    total = sum(seconds.values())
    shares = {part: round(took / total, 3) for part, took in seconds.items()}
    return dict(sorted(((p, s) for p, s in shares.items() if s >= 0.005), key=lambda x: -x[1]))


def _named(function: Callable, part: str) -> Callable:
    @functools.wraps(function)
    def named(*args):
        with record_function(f"part: {part}"):
            return function(*args)

    return named


def part_of(event) -> str:
    """The part of the step to which a profiled event belongs."""
    inside = event
    while inside is not None:
        if inside.name.startswith("part: "):
            return inside.name.removeprefix("part: ")
        if inside.name.startswith("Optimizer.step"):
            return "SGD"
        inside = inside.cpu_parent
    return next((part for word, part in PARTS if word in event.name), "other")
