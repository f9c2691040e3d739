"""Profile steps of the benchmark by parts of the network."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.profiler import record_function

from moco.builder import MoCo
from models.resnet12 import DropBlock

PARTS = (  # substring of an operation's name, part; the first match counts
    ("conv", "convolution"),
    ("batch_norm", "BatchNorm"),
    ("cat", "BatchNorm"),  # of the groups
    ("relu", "ReLU"),
    ("max_pool", "pooling"),
    ("dropout", "dropout"),
    ("bernoulli", "dropout"),
    ("DataLoader", "waiting for data"),
)


def profile(model: nn.Module, steps: Iterable[int], device: torch.device) -> dict[str, float]:
    """Return each part's share in the time of `steps`, taken by iterating, if at least 0.5 %.

    Not for compiled models, whose kernels span several parts.
    """
    regions = [(m, "forward", "DropBlock") for m in model.modules() if isinstance(m, DropBlock)]
    if isinstance(model, MoCo):
        regions.append((model, "update_key_encoder", "momentum update"))
    for owner, name, part in regions:
        setattr(owner, name, record_function(f"part: {part}")(getattr(owner, name)))
    with profiler_of(device) as profiler:
        sum(steps)
    for owner, name, _ in regions:
        delattr(owner, name)
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: its time is included in that of its operation
        self_time = event.self_cpu_time_total
        if device.type == "cuda":
            self_time = event.self_device_time_total
        seconds[part_of(event)] += self_time
    total = sum(seconds.values())
    shares = {part: round(time / total, 3) for part, time in seconds.items()}
    return dict(sorted(((p, s) for p, s in shares.items() if s >= 0.005), key=lambda x: -x[1]))


def profiler_of(device: torch.device) -> torch.profiler.profile:
    """Return a profiler of the CPU and, if it is used, of the GPU."""
    kinds = torch.profiler.ProfilerActivity
    on_gpu = [kinds.CUDA] if device.type == "cuda" else []
    return torch.profiler.profile(activities=[kinds.CPU, *on_gpu])


def part_of(event) -> str:
    """Return the part of the step to which a profiled event belongs."""
    ancestor = event
    while ancestor is not None:
        if ancestor.name.startswith("part: "):
            return ancestor.name.removeprefix("part: ")
        if ancestor.name.startswith("Optimizer.step"):
            return "SGD"
        ancestor = ancestor.cpu_parent
    return next((part for text, part in PARTS if text in event.name), "other")
