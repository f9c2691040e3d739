"""Settings of any training: optimisation, output and devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .settings import Settings, recipe, setting

EPOCHS, DROPS = 200, (120, 160)  # the papers' epochs and learning-rate drops


def scaled_drops(epochs: int, drops: Sequence[int] = DROPS, of: int = EPOCHS) -> list[int]:
    """Return the learning-rate drops of a run of `of` epochs, scaled to `epochs`."""
    return [max(1, epochs * drop // of) for drop in drops]


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """training"""

    epochs: int = setting(
        EPOCHS, "number of epochs; 0 writes the untrained encoder", low=0, metavar="N",
        inherited="default",
    )  # fmt: skip
    batch_size: int = recipe(
        16, "batch size, over all processes", flags=("-b",), low=1, metavar="N",
    )  # fmt: skip
    lr: float = recipe(
        0.03, "initial learning rate", flags=("--lr", "--learning-rate"), low=0, metavar="LR",
    )  # fmt: skip
    schedule: list[int] = recipe(
        list(DROPS), "epochs at which the learning rate is divided by 10; if not given, scaled "
        "with --epochs", low=0, metavar="EPOCH",
    )  # fmt: skip
    cos: bool = recipe(False, "cosine schedule instead of --schedule", negatable=True)
    momentum: float = recipe(0.9, "SGD momentum", low=0, below=1, metavar="M")
    wd: float = recipe(1e-4, "weight decay", flags=("--wd", "--weight-decay"), low=0, metavar="W")
    amp: bool = recipe(
        None, "mixed precision: encoders in bfloat16 where autocast allows, the rest in float32",
        negatable=True, auto="on GPUs with bfloat16",
    )  # fmt: skip
    compile: bool | None = setting(
        None, "compile the encoders, and on a GPU the batch views, with torch.compile; takes half "
        "a minute or more at the start", negatable=True, auto="on one GPU for 15,000 steps or more",
    )  # fmt: skip
    start_epoch: int | None = setting(
        None, "first epoch of a new run (default: the checkpoint's with --resume, else 0)", low=0,
        metavar="N",
    )  # fmt: skip
    seed: int = setting(0, "random seed of the run", low=0, fixed=True)
    detect_anomaly: bool = setting(False, "report the operation that produced a NaN; much slower")


@dataclass(frozen=True, kw_only=True)
class Output(Settings):
    """output"""

    model_path: Path = setting(help="folder for checkpoints and log", metavar="DIR")
    resume: Path | None = setting(
        None, "checkpoint, or its folder, to resume from (default: the one in --model-path, if "
        "any)", metavar="PATH",
    )  # fmt: skip
    overwrite: bool = setting(False, "start a new run over an existing one")
    save_minutes: float = setting(
        15, "minutes between checkpoints within an epoch; 0: only at the end of epochs", low=0,
        metavar="MINUTES",
    )  # fmt: skip
    save_share: float = setting(
        0.05, "save after an epoch if the last checkpoint took at most this share of the time "
        "since; 1: after each", low=0, high=1, metavar="SHARE",
    )  # fmt: skip
    print_freq: int = setting(
        10, "steps between updates of the loss shown", flags=("-p",), low=1, metavar="STEPS",
    )  # fmt: skip
    knn_every: int = setting(
        0, "epochs between k-NN scores on the base classes, for the log only; 0: never", low=0,
        metavar="EPOCHS",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Training, Output):
    """The settings that `Trainer` reads."""


@dataclass(frozen=True, kw_only=True)
class Device(Settings):
    """device"""

    device: str = setting("auto", "auto (a GPU if available), cpu, cuda or cuda:N", runtime=True)
    gpu: int | None = setting(None, "index of the GPU to use", low=0, metavar="ID", runtime=True)
    workers: int = setting(
        4, "data-loading processes on this machine, at most one per CPU core; 0: load in the "
        "main process", flags=("-j",), low=0, metavar="N", runtime=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distributed(Device):
    """distributed training"""

    multiprocessing_distributed: bool = setting(False, "one process per GPU of this machine")
    nproc: int | None = setting(
        None, "with it: this many processes instead, on a CPU as well", low=1, metavar="N",
    )  # fmt: skip
    world_size: int = setting(1, "number of machines", low=1, metavar="N")
    rank: int = setting(0, "index of this machine", low=0, metavar="N")
    dist_url: str | None = setting(
        None, "rendezvous of several machines: tcp:// and a free port of the first machine; not "
        "needed on one machine", metavar="URL",
    )  # fmt: skip
    dist_timeout: float = setting(
        600, "how long ranks wait for each other at the start", low=1, metavar="SECONDS",
    )  # fmt: skip
    dist_backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto", "auto: nccl between GPUs, gloo otherwise",
    )  # fmt: skip
