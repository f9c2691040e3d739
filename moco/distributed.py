"""One process or many: starting them, and the few collectives that the method needs.

Every collective here is the identity in a world of one process.
"""

import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from datasets.files import InputError


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
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        index = gpu if gpu is not None else device.index or 0
        if index >= gpus:
            raise InputError(f"GPU {index} was asked for, but this machine has {gpus}")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def processes_per_node(multiprocessing_distributed: bool, nproc: int | None, device: str) -> int:
    """How many processes to start here: one a GPU, or one, or `nproc` if that is given."""
    if not multiprocessing_distributed:
        if nproc not in (None, 1):
            raise InputError(f"--nproc {nproc} needs --multiprocessing-distributed")
        return 1
    if nproc is not None:
        return nproc
    return 1 if device == "cpu" else max(1, torch.cuda.device_count())


def launch(
    worker: Callable,
    arguments: tuple,
    *,
    device: str,
    gpu: int | None,
    nproc: int,
    nodes: int,
    node_rank: int,
    url: str,
    backend: str,
    distributed: bool,
) -> None:
    """Run `worker(device, *arguments)` in `nproc` processes here, joined with those of the other
    nodes at `url`; or simply here, if not `distributed`.

    `backend` `auto` is nccl on GPUs and gloo elsewhere. A worker's failure ends the run: with
    exit code 2 after an InputError's line, with its traceback otherwise.
    """
    if not distributed:
        worker(pick_device(device, gpu), *arguments)
        return
    group = (nproc, nodes, node_rank, url, backend)
    try:
        if nproc == 1:
            _join(0, group, device, gpu, worker, arguments)
        else:
            mp.spawn(_join, nprocs=nproc, args=(group, device, gpu, worker, arguments))
    except mp.ProcessExitedException as error:
        sys.exit(error.exit_code)


def _join(
    local_rank: int,
    group: tuple[int, int, int, str, str],
    device: str,
    gpu: int | None,
    worker: Callable,
    arguments: tuple,
) -> None:
    """In a process of its own: pick a device, join the process group, work, leave."""
    nproc, nodes, node_rank, url, backend = group
    try:
        if nproc > 1:
            gpu = local_rank if torch.cuda.is_available() else None
        picked = pick_device(device, gpu)
        if picked.type == "cpu" and nproc > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // nproc))
        if backend == "auto":
            backend = "nccl" if picked.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=url, world_size=nodes * nproc, rank=node_rank * nproc + local_rank
        )
        try:
            worker(picked, *arguments)
        finally:
            dist.destroy_process_group()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
