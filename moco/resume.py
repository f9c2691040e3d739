"""Resuming: find an existing run, check that it matches the command, resolve the settings."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import InputError
from common.files import require_writable
from datasets import Collection
from datasets.episode import Task
from datasets.images import ImageSet, require_same
from models import has_batchnorm
from trainer.checkpoint import CHECKPOINT, PREVIOUS
from trainer.config import Output, TrainingSettings
from trainer.distributed import pick_device
from trainer.performance import has_bfloat16
from trainer.provenance import command, provenance
from trainer.settings import Settings, require_fixed, resolve
from trainer.trainer import Run

from .checkpoint import load_checkpoint, require_stage, save_checkpoint
from .config import FROM_WEIGHTS, STAGES, ContrastiveTraining, Distillation, ImageTraining

S = TypeVar("S", bound=Settings)
T = TypeVar("T", bound=ImageTraining)


class Source:
    """The checkpoint that a run continues from, read once per process."""

    def __init__(self, path: Path):
        self.path = path
        self._checkpoint: dict | None = None

    @property
    def checkpoint(self) -> dict:
        """The contents. Raises InputError as `load_checkpoint` does."""
        if self._checkpoint is None:
            self._checkpoint = load_checkpoint(self.path)
        return self._checkpoint

    def take(self) -> dict:
        """Return the contents for the last time: they take as much memory as the model."""
        checkpoint, self._checkpoint = self.checkpoint, None
        return checkpoint

    def __getstate__(self) -> dict:
        return {"path": self.path, "_checkpoint": None}  # other processes read the file


def holds_run(folder: Path) -> bool:
    """Return whether a folder has a checkpoint, the latest or the previous one."""
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def resolve_training(
    cls: type[T],
    given: Mapping[str, Any],
    inherited: Mapping[str, Any] | None = None,
    where: Path | str = "",
) -> tuple[T, Source | None]:
    """Return the settings of a training and the checkpoint that it continues from, if any.

    A run in --model-path is resumed without --resume, or if the whole command is repeated. Settings
    that the machine decides are those of the checkpoint, else the fastest on the device; the others
    have to be given again. Raises InputError if --resume is not a checkpoint, or as `resolve` does.
    """
    given = dict(given)
    folder, requested = given["model_path"], given.get("resume")
    source = Source(requested) if requested else None
    if holds_run(folder):
        existing = Source(folder)
        if given.get("overwrite") and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            # A requeued job must not overwrite its own run.
            job = existing.checkpoint["made_by"].get("job")
            given["overwrite"] = job != os.environ.get("SLURM_JOB_ID")
        if not given.get("overwrite"):
            repeated = requested and existing.checkpoint["made_by"].get("command") == command()
            if requested is None or repeated:
                given["resume"], source = folder, existing
    arch = given.get("arch") or (inherited or {}).get("arch") or cls.fields()["arch"].default
    gpu = given.get("gpu") if torch.cuda.is_available() else None
    device = pick_device(given.get("device", "auto"), gpu)
    auto: dict[str, Any] = {
        "amp": has_bfloat16(device),
        "views_by": "batch" if device.type == "cuda" and not given.get("no_cache") else "pil",
        **cls.defaults_for(arch),
    }
    if source:
        recorded = source.checkpoint["args"]
        auto |= {name: recorded[name] for name in auto if recorded.get(name) is not None}
    if (given.get("weights") or (inherited or {}).get("weights") or "none") != "none":
        auto |= FROM_WEIGHTS
    return resolve(cls, given, auto, inherited, where), source


def resolve_encoding(
    cls: type[S], given: Mapping[str, Any], checkpoint: dict, where: Path
) -> tuple[S, torch.device]:
    """Return settings and device of a command that encodes with a checkpoint from `where`.

    Raises InputError as `resolve` does.
    """
    device = pick_device(given.get("device", "auto"), given.get("gpu"))
    auto = {"amp": has_bfloat16(device), "augnum": STAGES[checkpoint["stage"]].augnum}
    return resolve(cls, given, auto, checkpoint["args"], where), device


def batchnorm_groups(settings: ContrastiveTraining, base_images: int, processes: int) -> int:
    """Return the number of BatchNorm groups per process; 1 for a backbone without BatchNorm.

    Raises InputError if the batch cannot be split equally into processes and groups, the queue is
    not a multiple of the batch, or the base set is smaller than one batch.
    """
    batch, groups = settings.batch_size, processes
    grouped = has_batchnorm(settings.arch, settings.image_size)
    if grouped:
        groups = max(groups, settings.bn_groups)
    if batch % processes:
        raise InputError(f"--batch-size {batch} must be divisible by {processes} processes")
    if grouped and (groups % processes or batch % groups or batch // groups < 2):
        raise InputError(
            f"--batch-size {batch} cannot be split into {groups} BatchNorm groups of at least 2 "
            f"images over {processes} processes; change -b or --bn-groups"
        )
    if settings.moco_k % batch:
        raise InputError(
            f"--moco-k {settings.moco_k}, the queue size, must be a multiple of --batch-size "
            f"{batch}, e.g. {-(-settings.moco_k // batch) * batch}"
        )
    if base_images < batch:
        raise InputError(f"--batch-size {batch} exceeds the {base_images} base images")
    return groups // processes


def is_resuming(settings: Output) -> bool:
    """Return whether --resume is the run in --model-path itself."""
    folder = settings.model_path.resolve()
    paths = (folder, folder / CHECKPOINT, folder / PREVIOUS)
    return settings.resume is not None and settings.resume.resolve() in paths


def check_run(settings: TrainingSettings, about: dict, source: Source | None) -> None:
    """Raise InputError if the run `about` may not start in --model-path or continue from `source`.

    It may not if it would overwrite a run, or if `source` has another stage, task, data or pseudo
    labels, or other fixed settings.
    """
    require_writable(settings.model_path)
    if holds_run(settings.model_path) and not is_resuming(settings) and not settings.overwrite:
        raise InputError(
            f"{settings.model_path} already holds a run; resume it by leaving out --resume, or "
            "replace it with --overwrite"
        )
    if source is None:
        return
    checkpoint, path = source.checkpoint, source.path
    require_stage(checkpoint, (about["stage"],), path)
    known = checkpoint.get("known_settings")
    require_fixed(type(settings), settings.record(), checkpoint["args"], path, known)
    tasks = [task and Task.from_dict(task) for task in (checkpoint["task"], about["task"])]
    if tasks[0] != tasks[1]:
        requested = "the requested one"
        if isinstance(settings, Distillation):
            requested = f"that in {settings.savedir}"
        raise InputError(f"{path} was trained for another task than {requested}")
    if "known_settings" in checkpoint:
        print(f"note: {path} does not record which images it was trained on")
    else:
        require_same(checkpoint["base"], about["base"], f"{path} was trained on")
    affected = "the cosine schedule" if settings.cos else None
    if isinstance(settings, Distillation):
        if checkpoint.get("pseudo_labels") != about.get("pseudo_labels"):
            raise InputError(
                f"{path} was trained on other pseudo labels than those in {settings.savedir}"
            )
        affected = "α_t of eq. (5)"
    planned = checkpoint["args"]["epochs"]
    if settings.epochs != planned and affected:
        print(f"note: --epochs {settings.epochs} instead of {planned} changes {affected}")


def about_run(
    stage: str, settings: ImageTraining, data: Collection, images: ImageSet, **others: Any
) -> dict[str, Any]:
    """Return what a run's checkpoint and log say of it: stage, settings, the training `images`, a
    part of `data`, and `others`."""
    return {
        "stage": stage,
        "args": settings.record(),
        "data": data.to_dict(),
        "base": images.fingerprint(),
        "task": None,
        "made_by": provenance(),
        **others,
    }


def run_of(settings: Output, about: dict, source: Source | None) -> Run:
    """Return the trainer's description of the run `about`."""
    return Run(
        settings.model_path, about, save_checkpoint, source.take() if source else None,
        source.path if source else None, is_resuming(settings), overwrite=settings.overwrite,
    )  # fmt: skip


def training_of(checkpoint: dict) -> dict:
    """Return a checkpoint's stage and fixed settings, equal for all seeds of an experiment."""
    args = checkpoint["args"]
    fixed = STAGES[checkpoint["stage"]].settings.names(fixed=True)
    shared = {name: args[name] for name in fixed if name not in ("seed", "teacher")}
    return {"stage": checkpoint["stage"], **shared}


def is_same_work(
    settings: Settings, given: Mapping[str, Any], previous: dict, checkpoint: dict
) -> bool:
    """Return whether the earlier output `previous` has the same settings and checkpoint.

    Runtime settings are ignored, except for an explicit --amp.
    """
    if "amp" in given and given["amp"] != previous.get("args", {}).get("amp"):
        return False
    try:
        args = type(settings).complete(previous.get("args", {}))
    except ValueError:
        return False
    current = json.loads(json.dumps(settings.record()))
    names = type(settings).names(runtime=False)
    same_settings = all(args[name] == current[name] for name in names)
    source = (previous.get("epoch"), previous.get("checkpoint_made_by"))
    return same_settings and source == (checkpoint["epoch"], checkpoint["made_by"])
