"""Which processes a run has, on what devices, and where they meet."""

import os
import re
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from common.errors import InputError, listed

ANY_PORT = "tcp://127.0.0.1:0"  # one that is free: the processes of one machine are told it


@dataclass(frozen=True)
class Plan:
    """Which processes a run has, and where they meet; without `url` this one alone.

    This process starts `nproc` of them, numbered from `first` on, or is itself that one. `backend`
    `auto` is nccl between GPUs and gloo otherwise; `patience`: seconds to wait for each other.
    """

    device: str
    gpu: int | None
    backend: str
    patience: float
    url: str | None = None  # tcp://, file://, or env:// for torchrun's
    is_opened: bool = False  # is somebody at `url` already, who is none of these processes?
    processes: int = 1
    first: int = 0
    nproc: int = 1
    local: int = 0  # number of `first` on its machine, which has `on_machine` of them
    on_machine: int = 1


class Place(TypedDict, total=False):
    """What of a Plan says which processes there are, and which of them are this one's."""

    url: str
    processes: int
    first: int
    nproc: int
    local: int
    on_machine: int


def plan(
    *,
    device: str,
    gpu: int | None,
    multiprocessing_distributed: bool,
    nproc: int | None,
    world_size: int,
    rank: int,
    dist_url: str | None,
    dist_backend: str,
    dist_timeout: float,
) -> Plan:
    """What torchrun or srun has started, or what the flags of these names ask for.

    Raises InputError if these contradict each other.
    """
    if nproc is not None and not multiprocessing_distributed:
        raise InputError(f"--nproc {nproc} needs --multiprocessing-distributed")
    if rank >= world_size:
        raise InputError(
            f"--rank {rank} does not exist in --world-size {world_size}; they count from 0"
        )
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if dist_backend == "nccl" and not gpus:
        raise InputError("--dist-backend nccl needs GPUs; gloo runs without")
    by, found = launched(os.environ)
    if by:
        if multiprocessing_distributed or world_size > 1:
            flag = "multiprocessing-distributed" if multiprocessing_distributed else "world-size"
            raise InputError(
                f"{by} has started {found['processes']} processes, and --{flag} asks for others; "
                "use one of the two"
            )
        if dist_url and by == "torchrun":
            raise InputError("--dist-url is not for torchrun, which has its own --rdzv-endpoint")
        if dist_url:
            found["url"] = dist_url
    else:
        nproc = nproc or (max(1, gpus) if multiprocessing_distributed else 1)
        found = {"processes": nproc * world_size, "first": rank * nproc, "nproc": nproc}
        found["on_machine"] = nproc
        if world_size > 1:
            if not dist_url:
                raise InputError(
                    f"--world-size {world_size} needs --dist-url tcp://FIRST_MACHINE:PORT"
                )
            found["url"] = dist_url
        elif multiprocessing_distributed:
            found["url"] = ANY_PORT
    here = found.get("on_machine", 1)
    if here > 1:
        if gpu is not None or ":" in device:
            which = device if gpu is None else f"--gpu {gpu}"
            raise InputError(
                f"{which} names one GPU, but {here} processes were asked for; "
                "CUDA_VISIBLE_DEVICES chooses several"
            )
        if 1 < gpus < here or (gpus == 1 and by != "srun"):  # which may show each its own alone
            raise InputError(f"{here} processes are more than this machine's {gpus} GPUs")
    if dist_url:
        _check_url(dist_url)
    return Plan(device, gpu, dist_backend, dist_timeout, **found)


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:  # no number, or out of range
        sound = False
    if not sound:
        raise InputError(f"--dist-url {url}: expected tcp://HOST:PORT, such as tcp://node1:10001")


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_ID",
        "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_LAUNCHER_PORT")  # fmt: skip


def launched(environment: Mapping[str, str]) -> tuple[str | None, Place]:
    """The launcher that has started this process as one of several, torchrun or srun, and what of
    its Plan that says; None and {} if there is none.

    torchrun counts where it runs in srun's tasks. Raises InputError if only some of a launcher's
    variables are there, or those of both contradict each other.
    """
    tasks = 1  # a batch script is in no step
    if environment.get("SLURM_STEP_NUM_TASKS"):
        tasks = _number(environment, "SLURM_STEP_NUM_TASKS")
    by_torchrun = [name for name in TORCHRUN if name in environment]
    if any(name in by_torchrun for name in TORCHRUN[:3]):
        _require(environment, "torchrun", TORCHRUN)
        rank, size, local, here = (_number(environment, name) for name in TORCHRUN[:4])
        if not 0 <= rank < size:
            raise InputError(f"RANK={rank} does not exist in WORLD_SIZE={size}; they count from 0")
        if tasks > 1 and "TORCHELASTIC_RUN_ID" not in environment:  # set by hand
            number = environment.get("SLURM_PROCID")
            if (number, tasks) != (str(rank), size):
                raise InputError(
                    f"srun says process {number} of {tasks}, but RANK and WORLD_SIZE say {rank} of "
                    f"{size}; unset these"
                )
        return "torchrun", Place(
            url="env://", processes=size, first=rank, local=local, on_machine=here
        )
    if tasks == 1:
        return None, {}
    _require(environment, "srun", SRUN)
    rank, local, machine = (_number(environment, name) for name in SRUN[:3])
    tasks_of = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    job = f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    if len(tasks_of) == 1:  # a file does; the launcher's port tells a step from those before it
        name = f"processes-meet-{job}-{environment['SLURM_STEP_LAUNCHER_PORT']}"
        url = f"file://{os.path.join(tempfile.gettempdir(), name)}"
    else:
        host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
        step = _number(environment, "SLURM_JOB_ID") + 7 * _number(environment, "SLURM_STEP_ID")
        port = environment.get("MASTER_PORT") or 20_000 + step % 10_000
        url = f"tcp://{host}:{port}"
    here = tasks_of[machine]
    return "srun", Place(url=url, processes=tasks, first=rank, local=local, on_machine=here)


def _require(environment: Mapping[str, str], launcher: str, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in environment]:
        there = [name for name in names if name in environment]
        raise InputError(
            f"{launcher} has started this process in part: {listed(there) or 'it'} is set, but not "
            f"{listed(missing)}; let {launcher} set them all, or unset them"
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name}={environment[name]}: expected a number") from None


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    counts = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts


def _first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: "gpu[03-05,7]-a,node1" gives gpu03-a."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert found is not None  # nothing at all would match, too
    before, number, after = found.groups("")
    return before + number + after
