"""Settings of any training: how it learns, what it writes, where it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .distributed import readers
from .launch_plan import Plan, plan
from .settings import Settings, setting

EPOCHS, DROPS = 200, (120, 160)  # the papers'; drops of the learning rate


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """training"""

    epochs: int = setting(
        EPOCHS, "epochs to train; 0 writes the untrained encoder", low=0, metavar="N",
        inherited="default",
    )  # fmt: skip
    batch_size: int = setting(
        16, "images a step, over all processes", flags=("-b",), low=1, metavar="N", fixed=True,
        inherited="default",
    )  # fmt: skip
    lr: float = setting(
        0.03, "learning rate at the start", flags=("--lr", "--learning-rate"), low=0, metavar="LR",
        fixed=True, inherited="default",
    )  # fmt: skip
    schedule: list[int] = setting(
        list(DROPS), "epochs at which the learning rate is divided by 10", low=0, metavar="EPOCH",
        fixed=True, inherited="default",
    )  # fmt: skip
    cos: bool = setting(
        False, "cosine schedule instead", negatable=True, fixed=True, inherited="default"
    )
    momentum: float = setting(
        0.9, "momentum of SGD", low=0, below=1, metavar="M", fixed=True, inherited="default"
    )
    wd: float = setting(
        1e-4, "weight decay", flags=("--wd", "--weight-decay"), low=0, metavar="W", fixed=True,
        inherited="default",
    )  # fmt: skip
    amp: bool = setting(
        None, "mixed precision: the encoders compute in bfloat16 where that is safe, the rest in "
        "32 bits", negatable=True, fixed=True, inherited="default", auto="on a GPU that has it",
    )  # fmt: skip
    compile: bool = setting(
        False, "have torch.compile make code of the encoders: half a minute or more at the start"
    )
    start_epoch: int | None = setting(
        None, "number of a new run's first epoch (default: the checkpoint's with --resume, else 0)",
        low=0, metavar="N",
    )  # fmt: skip
    seed: int = setting(0, "of everything random in the run", low=0, fixed=True)
    detect_anomaly: bool = setting(
        False, "have torch say which operation made a number that is none: much slower"
    )


@dataclass(frozen=True, kw_only=True)
class Output(Settings):
    """what it writes"""

    model_path: Path = setting(help="folder for checkpoints and log", metavar="DIR")
    resume: Path | None = setting(
        None, "checkpoint, or its folder, to continue from (default: the one in --model_path, if "
        "there is one)", metavar="PATH",
    )  # fmt: skip
    overwrite: bool = setting(False, "start anew over an existing run")
    save_minutes: float = setting(
        15, "between checkpoints, besides that of each epoch; 0: those alone", low=0,
        metavar="MINUTES",
    )  # fmt: skip
    print_freq: int = setting(
        10, "steps between updates of the loss on the screen", flags=("-p",), low=1,
        metavar="STEPS",
    )  # fmt: skip
    knn_every: int = setting(
        0, "epochs between k-NN scores on the base set's classes, for the log alone; 0: never",
        low=0, metavar="EPOCHS",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Training, Output):
    """What the trainer reads of a script's settings."""


@dataclass(frozen=True, kw_only=True)
class Device(Settings):
    """where it runs"""

    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N", runtime=True)
    gpu: int | None = setting(None, "number of the GPU to use", low=0, metavar="ID", runtime=True)
    workers: int = setting(
        4, "processes on this machine that read images, at most one a processor; 0: none beside "
        "the main one", flags=("-j",), low=0, metavar="N", runtime=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distributed(Device):
    """several processes"""

    multiprocessing_distributed: bool = setting(False, "one process for each GPU of this machine")
    nproc: int | None = setting(
        None, "with it: this many processes instead (on a CPU, too)", low=1, metavar="N"
    )
    world_size: int = setting(1, "number of machines", low=1, metavar="N")
    rank: int = setting(0, "which machine this is", low=0, metavar="N")
    dist_url: str | None = setting(
        None, "where those of several machines meet: tcp:// and a free port of the first machine; "
        "those of one machine find each other", metavar="URL",
    )  # fmt: skip
    dist_timeout: float = setting(
        600, "how long they wait for each other at the start", low=1, metavar="SECONDS"
    )
    dist_backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto", "auto: nccl between GPUs, gloo otherwise"
    )


def launch_plan(settings: Distributed) -> Plan:
    """Return which processes to start. Raises InputError as `plan` does."""
    return plan(
        device=settings.device,
        gpu=settings.gpu,
        multiprocessing_distributed=settings.multiprocessing_distributed,
        nproc=settings.nproc,
        world_size=settings.world_size,
        rank=settings.rank,
        dist_url=settings.dist_url,
        dist_backend=settings.dist_backend,
        dist_timeout=settings.dist_timeout,
    )


def readers_of(settings: Device) -> int:
    """Return how many processes read images for each process of the run."""
    here = launch_plan(settings).on_machine if isinstance(settings, Distributed) else 1
    return readers(settings.workers, here)
