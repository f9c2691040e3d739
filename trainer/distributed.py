"""Collectives and devices. With one process every collective is the identity."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import InputError
from common.files import alone_in

T = TypeVar("T")
LOCK = ".lock"


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is rank 0, which prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks' `x` (of equal shapes), without gradients."""
    if world_size() == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


@torch.no_grad()
def broadcast(x: Tensor) -> Tensor:
    """Overwrite `x` with rank 0's and return it."""
    if world_size() > 1:
        dist.broadcast(x, src=0)
    return x


@torch.no_grad()
def my_share(x: Tensor) -> Tensor:
    """Return this rank's rows of `x`, a global batch."""
    return x.chunk(world_size())[rank()]


@torch.no_grad()
def all_mean(x: Tensor) -> Tensor:
    """Return the mean of `x` over all ranks."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / world_size()


cpu_group: dist.ProcessGroup | None = None  # gloo group for collectives without GPUs


def all_max(number: int) -> int:
    """Return the maximum of `number` over all ranks, without waiting for a GPU."""
    if world_size() == 1:
        return number
    maximum = torch.tensor(number)
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=cpu_group)
    return int(maximum)


def gather_objects(value: T) -> list[T]:
    """Return every rank's `value`, pickled in transit, by rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value, group=cpu_group)
    return values


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return BatchNorm's running means and variances by name; each rank tracks its own batches."""
    suffixes = ("running_mean", "running_var")
    return {name: buffer for name, buffer in module.named_buffers() if name.endswith(suffixes)}


def average_running_statistics(module: nn.Module) -> None:
    """Average BatchNorm's running statistics over all ranks, in place."""
    for buffer in running_statistics(module).values():
        buffer.copy_(all_mean(buffer))


def in_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with gradients averaged over all ranks."""
    if world_size() == 1:
        return model
    device_ids = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # each rank has its own BatchNorm statistics
    return wrapped


def require_same_on_all_ranks(state: tuple, folder: Path) -> None:
    """Raise InputError, on all ranks, if their `state` differs."""
    if len(set(map(repr, gather_objects(state)))) > 1:
        raise InputError(
            f"ranks have different arguments or data, or see different files in {folder}; give all "
            "the same"
        )


@contextlib.contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Keep other trainings out of `folder` within the block. Raises InputError, on all ranks, if
    one is there."""
    with contextlib.ExitStack() as stack:
        alone = True
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(alone_in(folder / LOCK))
        if all_max(not alone):
            raise InputError(
                f"another process is training in {folder}; wait for it, stop it, or choose another "
                f"--model-path; if there is none, as after a crash of its machine, remove "
                f"{folder / LOCK}"
            )
        yield


def pick_device(name: str, gpu: int | None = None) -> torch.device:
    """Return the device `name`, where auto is a GPU if available, and `gpu` its index.

    Raises InputError if it does not exist.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        if gpus == 0:
            if gpu is not None:
                print(f"--gpu {gpu}: no GPU available, running on the CPU", file=sys.stderr)
            return torch.device("cpu")
        name = "cuda"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        index = gpu if gpu is not None else device.index or 0
        if index >= gpus:
            raise InputError(f"GPU {index} does not exist: this machine has {gpus}")
        device = torch.device("cuda", index)
        if index != torch.cuda.current_device():  # allocates memory on the GPU
            torch.cuda.set_device(device)
    return device


def readers(workers: int, nproc: int = 1) -> int:
    """Return a rank's share of this machine's `workers`, at most one per CPU core."""
    return min(-(-workers // nproc), available_cpus())


def available_cpus() -> int:
    """Return the number of CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_files_limit() -> float:
    """Return how many files this process may open."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit
