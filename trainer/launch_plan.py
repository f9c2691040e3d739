"""Plan a run's processes: their ranks, devices and rendezvous."""

import urllib.parse
from dataclasses import dataclass

import torch

from common.errors import InputError

from .config import Device, Distributed
from .distributed import readers
from .launchers import launched

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


def plan_of(settings: Distributed) -> Plan:
    """Return the plan that torchrun's or srun's environment, or else the flags, describe.

    Raises InputError if they conflict.
    """
    gpus = 0 if settings.device == "cpu" else torch.cuda.device_count()
    launcher, ranks = launched()
    _check_flags(settings, gpus, launcher, ranks.get("world_size", 1))
    if not launcher:
        several = settings.multiprocessing_distributed
        nproc = settings.nproc or (max(1, gpus) if several else 1)
        ranks = {"world_size": nproc * settings.world_size, "first_rank": settings.rank * nproc}
        ranks |= {"nproc": nproc, "local_world_size": nproc}
        if several:
            ranks["url"] = ANY_PORT
    if settings.dist_url and (launcher or settings.world_size > 1):
        ranks["url"] = settings.dist_url
    _check_gpus(settings, ranks.get("local_world_size", 1), gpus, launcher)
    return Plan(
        settings.device, settings.gpu, settings.dist_backend, settings.dist_timeout, **ranks
    )


def readers_of(settings: Device) -> int:
    """Return the number of data-loading workers per rank."""
    local = plan_of(settings).local_world_size if isinstance(settings, Distributed) else 1
    return readers(settings.workers, local)


def _check_flags(settings: Distributed, gpus: int, launcher: str | None, size: int) -> None:
    """Raise InputError if the flags contradict each other, the GPUs there are, or the launcher."""
    several, machines = settings.multiprocessing_distributed, settings.world_size
    if settings.nproc is not None and not several:
        raise InputError(f"--nproc {settings.nproc} needs --multiprocessing-distributed")
    if settings.rank >= machines:
        raise InputError(
            f"--rank must be in [0, {machines - 1}] with --world-size {machines}, got "
            f"{settings.rank}"
        )
    if settings.dist_backend == "nccl" and not gpus:
        raise InputError("--dist-backend nccl needs GPUs; use gloo on a CPU")
    if settings.dist_url:
        _check_url(settings.dist_url)
    if launcher and (several or machines > 1):
        flag = "multiprocessing-distributed" if several else "world-size"
        raise InputError(
            f"{launcher} started {size} processes, which conflicts with --{flag}; "
            "use only one of them"
        )
    if launcher == "torchrun" and settings.dist_url:
        raise InputError("--dist-url does not apply to torchrun; use its --rdzv-endpoint")
    if machines > 1 and not settings.dist_url:
        raise InputError(f"--world-size {machines} needs --dist-url tcp://FIRST_MACHINE:PORT")


def _check_gpus(settings: Distributed, local: int, gpus: int, launcher: str | None) -> None:
    """Raise InputError if `local` processes cannot have a GPU each, of `gpus` that there are."""
    if local == 1:
        return
    if settings.gpu is not None or ":" in settings.device:
        name = "device" if settings.gpu is None else "gpu"
        flag = f"--{name} {getattr(settings, name)}"
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
