"""Plan a run's processes: their ranks, devices and rendezvous."""

import os
import re
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from common.errors import InputError, listed

ANY_PORT = "tcp://127.0.0.1:0"  # on one machine: a free port that `launch` picks


@dataclass(frozen=True)
class Plan:
    """The processes of a run and their rendezvous; without `url`, this process alone.

    This process starts `nproc` ranks from `first_rank` on, or is itself that rank. `backend`
    "auto" is nccl between GPUs and gloo otherwise; ranks wait `timeout` seconds for each other.
    """

    device: str
    gpu: int | None
    backend: str
    timeout: float
    url: str | None = None  # tcp://, file://, or env:// under torchrun
    store_is_open: bool = False  # the parent process serves `url`, not rank 0
    world_size: int = 1
    first_rank: int = 0
    nproc: int = 1
    local_rank: int = 0  # of `first_rank`
    local_world_size: int = 1


class Ranks(TypedDict, total=False):
    """The fields of a Plan that say which ranks exist and which are this process's."""

    url: str
    world_size: int
    first_rank: int
    nproc: int
    local_rank: int
    local_world_size: int


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
    """Return the plan that torchrun's or srun's environment, or else the flags, describe.

    Raises InputError if they conflict.
    """
    if nproc is not None and not multiprocessing_distributed:
        raise InputError(f"--nproc {nproc} needs --multiprocessing-distributed")
    if rank >= world_size:
        raise InputError(
            f"--rank must be in [0, {world_size - 1}] with --world-size {world_size}, got {rank}"
        )
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if dist_backend == "nccl" and not gpus:
        raise InputError("--dist-backend nccl needs GPUs; use gloo on a CPU")
    if dist_url:
        _check_url(dist_url)
    launcher, ranks = launched(os.environ)
    if launcher:
        if multiprocessing_distributed or world_size > 1:
            flag = "multiprocessing-distributed" if multiprocessing_distributed else "world-size"
            raise InputError(
                f"{launcher} started {ranks['world_size']} processes, which conflicts with "
                f"--{flag}; use only one of them"
            )
        if dist_url and launcher == "torchrun":
            raise InputError("--dist-url does not apply to torchrun; use its --rdzv-endpoint")
    else:
        nproc = nproc or (max(1, gpus) if multiprocessing_distributed else 1)
        ranks = {"world_size": nproc * world_size, "first_rank": rank * nproc, "nproc": nproc}
        ranks["local_world_size"] = nproc
        if world_size > 1 and not dist_url:
            raise InputError(f"--world-size {world_size} needs --dist-url tcp://FIRST_MACHINE:PORT")
        if multiprocessing_distributed:
            ranks["url"] = ANY_PORT
    if dist_url and (launcher or world_size > 1):
        ranks["url"] = dist_url
    _check_gpus(device, gpu, ranks.get("local_world_size", 1), gpus, launcher)
    return Plan(device, gpu, dist_backend, dist_timeout, **ranks)


def _check_gpus(device: str, gpu: int | None, local: int, gpus: int, launcher: str | None) -> None:
    """Raise InputError if `local` processes cannot have a GPU each, of `gpus` that there are."""
    if local == 1:
        return
    if gpu is not None or ":" in device:
        flag = f"--device {device}" if gpu is None else f"--gpu {gpu}"
        raise InputError(
            f"{flag} selects one GPU for {local} processes; select several with "
            "CUDA_VISIBLE_DEVICES"
        )
    if 1 < gpus < local or (gpus == 1 and launcher != "srun"):  # srun may show each its own
        raise InputError(f"{local} processes need as many GPUs, but this machine has {gpus}")


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        is_valid = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:  # the port is not a number or out of range
        is_valid = False
    if not is_valid:
        raise InputError(f"--dist-url {url}: expected tcp://HOST:PORT, such as tcp://node1:10001")


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_ID",
        "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_LAUNCHER_PORT")  # fmt: skip


def launched(environment: Mapping[str, str]) -> tuple[str | None, Ranks]:
    """Return the launcher that started this process as one of several, torchrun or srun, and the
    ranks that it set; None and {} without a launcher.

    Under both, as torchrun in srun's tasks, torchrun's count. Raises InputError if a launcher's
    variables are incomplete, or those of both conflict.
    """
    tasks = 1  # in a batch script, outside any step
    if environment.get("SLURM_STEP_NUM_TASKS"):
        tasks = _integer(environment, "SLURM_STEP_NUM_TASKS")
    if any(name in environment for name in TORCHRUN[:3]):
        _require(environment, "torchrun", TORCHRUN)
        rank, size, local_rank, local_size = (_integer(environment, name) for name in TORCHRUN[:4])
        if not 0 <= rank < size:
            raise InputError(f"RANK must be in [0, {size - 1}] with WORLD_SIZE={size}, got {rank}")
        if tasks > 1 and "TORCHELASTIC_RUN_ID" not in environment:  # set by hand
            task = environment.get("SLURM_PROCID")
            if (task, tasks) != (str(rank), size):
                raise InputError(
                    f"srun set rank {task} of {tasks}, but RANK={rank} and WORLD_SIZE={size}; "
                    "unset RANK and WORLD_SIZE"
                )
        return "torchrun", Ranks(
            url="env://", world_size=size, first_rank=rank, local_rank=local_rank,
            local_world_size=local_size,
        )  # fmt: skip
    if tasks == 1:
        return None, {}
    _require(environment, "srun", SRUN)
    rank, local_rank, node = (_integer(environment, name) for name in SRUN[:3])
    tasks_per_node = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    job = f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    if len(tasks_per_node) == 1:  # meet in a file; the port distinguishes restarts of a step
        name = f"processes-meet-{job}-{environment['SLURM_STEP_LAUNCHER_PORT']}"
        url = f"file://{os.path.join(tempfile.gettempdir(), name)}"
    else:
        host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
        step = _integer(environment, "SLURM_JOB_ID") + 7 * _integer(environment, "SLURM_STEP_ID")
        port = environment.get("MASTER_PORT") or 20_000 + step % 10_000
        url = f"tcp://{host}:{port}"
    return "srun", Ranks(
        url=url, world_size=tasks, first_rank=rank, local_rank=local_rank,
        local_world_size=tasks_per_node[node],
    )  # fmt: skip


def _require(environment: Mapping[str, str], launcher: str, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in environment]:
        present = [name for name in names if name in environment]
        raise InputError(
            f"incomplete {launcher} environment: missing {listed(missing)}; let {launcher} set "
            f"them, or unset {listed(present) or 'the others'}"
        )


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name}={environment[name]}: expected a number") from None


def _tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's "2(x3),1" to [2, 2, 2, 1]."""
    counts = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's list of hosts: gpu03-a of "gpu[03-05,7]-a,node1"."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert match is not None  # it matches the empty string
    prefix, number, suffix = match.groups("")
    return prefix + number + suffix
