"""One process or many: starting them, and the few collectives that the method needs.

Every collective here is the identity in a world of one process.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from datasets.files import InputError, listed

from .interrupts import EXIT_CODES, Stopped, passing_on


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


_hosts = None  # the group in which processes talk without their GPUs


def agreed(number: int) -> int:
    """The highest of all processes' numbers. Waits for the processes, but for no GPU."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_hosts)
    return int(found)


def gather_objects(value: object) -> list:
    """Every process's `value` (which goes through pickle), by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_hosts)
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
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        index = gpu if gpu is not None else device.index or 0
        if index >= gpus:
            raise InputError(f"GPU {index} was asked for, but this machine has {gpus}")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Is this a GPU that computes in bfloat16?"""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8


@dataclass(frozen=True)
class Plan:
    """Which processes a run has, and where they meet; `distributed` False means this one alone.

    `backend` `auto` is nccl between GPUs and gloo otherwise.
    """

    device: str
    gpu: int | None
    distributed: bool
    nproc: int  # on this machine
    nodes: int
    node_rank: int
    url: str
    backend: str

    @property
    def processes(self) -> int:
        return self.nproc * self.nodes


def plan(
    *,
    device: str,
    gpu: int | None,
    multiprocessing_distributed: bool,
    nproc: int | None,
    world_size: int,
    rank: int,
    dist_url: str,
    dist_backend: str,
) -> Plan:
    """What the flags of these names ask for. Raises InputError if they contradict each other."""
    if nproc is not None and not multiprocessing_distributed:
        raise InputError(f"--nproc {nproc} needs --multiprocessing-distributed")
    if rank >= world_size:
        raise InputError(
            f"--rank {rank} does not exist in --world-size {world_size}; they count from 0"
        )
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if dist_backend == "nccl" and not gpus:
        raise InputError("--dist-backend nccl needs GPUs; gloo runs without")
    if multiprocessing_distributed and nproc is None:
        nproc = max(1, gpus)
    if nproc is not None and nproc > 1:
        if gpu is not None or ":" in device:
            which = device if gpu is None else f"--gpu {gpu}"
            raise InputError(
                f"{which} names one GPU, but {nproc} processes were asked for; "
                "CUDA_VISIBLE_DEVICES chooses several"
            )
        if gpus and nproc > gpus:
            raise InputError(f"--nproc {nproc} is more than this machine's {gpus} GPUs")
    distributed = multiprocessing_distributed or world_size > 1
    return Plan(device, gpu, distributed, nproc or 1, world_size, rank, dist_url, dist_backend)


def readers(workers: int, nproc: int = 1) -> int:
    """A process's share of this machine's `workers`, but no more than there are processors."""
    return min(-(-workers // nproc), processors())


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def launch(plan: Plan, worker: Callable, *arguments: object) -> None:
    """Run `worker(device, *arguments)` in each of this machine's processes.

    A worker's failure ends them all, and is raised here: an InputError or OSError as InputError.
    """
    if not plan.distributed:
        worker(pick_device(plan.device, plan.gpu), *arguments)
    elif plan.nproc == 1:
        _join(0, plan, worker, arguments)
    else:
        complaints = mp.get_context("spawn").SimpleQueue()
        # Its warning that one process's end ends the others says nothing that the error does not.
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
        # How processes start other ones is lost on those that are spawned: their readers of images
        # would each load all of torch.
        handed = (plan, worker, arguments, complaints, mp.get_start_method())
        context = mp.spawn(_spawned, nprocs=plan.nproc, args=handed, join=False)
        with passing_on(context.processes) as signals:
            try:
                while not context.join():
                    pass
            except (mp.ProcessExitedException, mp.ProcessRaisedException):
                if signals:
                    raise Stopped(signals[0]) from None
                if not complaints.empty():
                    raise InputError(complaints.get()) from None
                codes = [process.exitcode for process in context.processes]
                if stopped := [code for code in codes if code in EXIT_CODES]:
                    raise Stopped(stopped[0] - 128) from None
                lost = [n for n, code in enumerate(codes) if code == -signal.SIGKILL]
                if lost:
                    raise InputError(
                        f"process {listed(lost)} of {plan.nproc} was killed (too little memory?); "
                        "the same command goes on from the last checkpoint"
                    ) from None
                raise


def _spawned(
    local_rank: int,
    plan: Plan,
    worker: Callable,
    arguments: tuple,
    complaints,
    start_method: str,
) -> None:
    """`_join` as a process of its own, whose errors for people go to `complaints`."""
    mp.set_start_method(start_method, force=True)
    try:
        _join(local_rank, plan, worker, arguments)
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except (InputError, OSError) as error:
        complaints.put(str(error))
        sys.exit(2)


def _join(local_rank: int, plan: Plan, worker: Callable, arguments: tuple) -> None:
    """Pick a device, join the process group, work, leave."""
    gpu, backend = plan.gpu, plan.backend
    if plan.nproc > 1:
        gpu = local_rank if torch.cuda.is_available() else None
        torch.set_num_threads(max(1, processors() // plan.nproc))
    device = pick_device(plan.device, gpu)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method=plan.url,
            world_size=plan.processes,
            rank=plan.node_rank * plan.nproc + local_rank,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the processes cannot meet at --dist-url {plan.url}: {reason}") from error
    global _hosts
    _hosts = dist.new_group(backend="gloo") if backend == "nccl" else None
    try:
        worker(device, *arguments)
    finally:
        dist.destroy_process_group()
