"""One process or many: the few collectives that training needs, and the devices.

Every collective here is the identity in a world of one process.
"""

import os
import sys
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import InputError

T = TypeVar("T")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Is this the process that prints and writes?"""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """The rows of every process's `x` (same shape everywhere), by rank. No gradient flows."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def broadcast(x: Tensor) -> Tensor:
    """Overwrite `x` with rank 0's, and return it."""
    if world_size() > 1:
        dist.broadcast(x, src=0)
    return x


@torch.no_grad()
def my_share(x: Tensor) -> Tensor:
    """The rows of `x`, as long as all processes' batches together, that are this process's."""
    return x.chunk(world_size())[rank()]


@torch.no_grad()
def all_mean(x: Tensor) -> Tensor:
    """The mean of `x` over all processes."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / world_size()


hosts: dist.ProcessGroup | None = None  # the group in which processes talk without their GPUs


def agreed(number: int) -> int:
    """The highest of all processes' numbers. Waits for the processes, but for no GPU."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=hosts)
    return int(found)


def gather_objects(value: T) -> list[T]:
    """Every process's `value` (which goes through pickle), by rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value, group=hosts)
    return values


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of BatchNorm.

    While training each process follows its own share of the batches, which is all that it needs
    then.
    """
    endings = ("running_mean", "running_var")
    return {name: buffer for name, buffer in module.named_buffers() if name.endswith(endings)}


def average_running_statistics(module: nn.Module) -> None:
    """Give every process the mean of all processes' running statistics of BatchNorm."""
    for buffer in running_statistics(module).values():
        buffer.copy_(all_mean(buffer))


def pick_device(name: str, gpu: int | None = None) -> torch.device:
    """`auto` is the GPU if there is one; `gpu` says which. Raises InputError for one not there."""
    gpus = torch.cuda.device_count()
    if name == "auto":
        if gpus == 0:
            if gpu is not None:
                print(f"--gpu {gpu}: no GPU here, running on the CPU", file=sys.stderr)
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
            raise InputError(f"GPU {index} was asked for, but this machine has {gpus}")
        device = torch.device("cuda", index)
        if index != torch.cuda.current_device():  # it alone takes memory of the GPU
            torch.cuda.set_device(device)
    return device


def readers(workers: int, nproc: int = 1) -> int:
    """A process's share of this machine's `workers`, but no more than there are processors."""
    return min(-(-workers // nproc), processors())


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
