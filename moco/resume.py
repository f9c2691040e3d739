"""Resuming: find an existing run, check that it matches the command, resolve the settings."""

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import InputError, listed
from common.files import require_writable
from common.names import quoted
from datasets import Collection
from datasets.content import content_key
from datasets.episode import Task
from datasets.images import ImageSet
from models import has_batchnorm
from trainer.checkpoint import CHECKPOINT, PREVIOUS, stamp
from trainer.config import EPOCHS, Output, TrainingSettings, scaled_drops
from trainer.distributed import pick_device
from trainer.performance import has_bfloat16
from trainer.provenance import command, provenance
from trainer.settings import Settings, require_fixed, resolve
from trainer.trainer import Run

from .checkpoint import (
    load_checkpoint,
    note_on_epochs,
    require_stage,
    require_trained_on,
    save_checkpoint,
)
from .config import FROM_WEIGHTS, STAGES, ContrastiveTraining, Distillation, ImageTraining

S = TypeVar("S", bound=Settings)
T = TypeVar("T", bound=ImageTraining)


class Source:
    """The checkpoint that a run continues from, read once per process."""

    def __init__(self, path: Path):
        self.path = path
        self.stamp = stamp(path if path.is_dir() else path.parent)  # before it is read

    @functools.cached_property
    def checkpoint(self) -> dict:
        """The contents. Raises InputError as `load_checkpoint` does."""
        return load_checkpoint(self.path)

    def take(self) -> dict:
        """Return the contents for the last time: they take as much memory as the model."""
        checkpoint = self.checkpoint
        del self.checkpoint
        return checkpoint

    def __getstate__(self) -> dict:
        return {"path": self.path}  # other processes read the file


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
    have to be given again, except for --schedule: it is the checkpoint's or, with other --epochs
    than the default or the teacher's, scaled with them. Raises InputError if --resume is not a
    checkpoint, or as `resolve` does.
    """
    given = dict(given)
    source = _source(given)
    arch = given.get("arch") or (inherited or {}).get("arch") or cls.fields()["arch"].default
    gpu = given.get("gpu") if torch.cuda.is_available() else None
    device = pick_device(given.get("device", "auto"), gpu)
    auto: dict[str, Any] = {
        "amp": has_bfloat16(device),
        "views_by": "batch" if device.type == "cuda" and not given.get("no_cache") else "pil",
        **cls.defaults_for(arch),
    }
    recorded = source.checkpoint["args"] if source else {}
    auto |= {name: recorded[name] for name in auto if recorded.get(name) is not None}
    if (given.get("weights") or (inherited or {}).get("weights") or "none") != "none":
        auto |= FROM_WEIGHTS
    if recorded.get("schedule") is not None:
        given.setdefault("schedule", list(recorded["schedule"]))
    settings = resolve(cls, given, auto, inherited, where)
    if source is None and given.get("mlp") and not getattr(settings, "moco_dim", True):
        raise InputError("--mlp: --moco-dim 0 leaves out the head that it is to have a layer of")
    others = {name: value for name, value in given.items() if name != "epochs"}
    usual = resolve(cls, others, auto, inherited, where)
    if "schedule" not in given and settings.epochs not in (0, usual.epochs):
        drops = scaled_drops(settings.epochs, usual.schedule, usual.epochs or EPOCHS)
        settings = replace(settings, schedule=drops)
        note_on_schedule(settings)
    return settings, source


def note_on_schedule(settings: TrainingSettings) -> None:
    """Print where the learning rate drops; if nowhere, `notes_on_length` says so."""
    drops = [drop for drop in settings.schedule if drop < settings.epochs]
    if drops and not settings.cos:
        times = {n: f" ({drops.count(n)} times)" * (drops.count(n) > 1) for n in drops}
        text = " and ".join(f"{n}{several}" for n, several in times.items())
        print(
            f"note: --epochs {settings.epochs} without --schedule: the learning rate drops after "
            f"epoch {text}"
        )


def _source(given: dict[str, Any]) -> Source | None:
    """Return the checkpoint that the settings `given` continue from; sets `resume`, or unsets
    `overwrite`, if it is the run in --model-path."""
    folder, requested = given["model_path"], given.get("resume")
    source = Source(requested) if requested else None
    if not holds_run(folder):
        return source
    existing = Source(folder)
    if given.get("overwrite") and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        # A requeued job must not overwrite its own run.
        job = existing.checkpoint["made_by"].get("job")
        given["overwrite"] = job != os.environ.get("SLURM_JOB_ID")
    if given.get("overwrite"):
        return source
    repeated = requested and existing.checkpoint["made_by"].get("command") == command()
    if requested is None or repeated:
        given["resume"], source = folder, existing
    return source


def resolve_encoding(
    cls: type[S], given: Mapping[str, Any], checkpoint: dict
) -> tuple[S, torch.device]:
    """Return settings and device of a command that encodes with the checkpoint of --resume.

    Raises InputError as `resolve` does.
    """
    note_on_epochs(checkpoint, given["resume"])
    device = pick_device(given.get("device", "auto"), given.get("gpu"))
    auto = {"amp": has_bfloat16(device), "augnum": STAGES[checkpoint["stage"]].augnum}
    return resolve(cls, given, auto, checkpoint["args"], given["resume"]), device


def batchnorm_groups(settings: ContrastiveTraining, base_images: int, processes: int) -> int:
    """Return the number of BatchNorm groups per process; 1 for a backbone without BatchNorm, 0 if
    its statistics are kept.

    Raises InputError if the batch cannot be split equally into processes and groups, the queue is
    not a multiple of the batch, or the base set is smaller than one batch; or if random weights
    have no statistics to keep.
    """
    batch, groups = settings.batch_size, processes
    grouped = has_batchnorm(settings.arch, settings.image_size)
    if grouped:
        groups = max(groups, settings.bn_groups) if settings.bn_groups else 0
    if batch % processes:
        raise InputError(f"--batch-size {batch} must be divisible by {processes} processes")
    if grouped and not groups and settings.weights == "none":
        raise InputError("--bn-groups 0 keeps BatchNorm's statistics: it takes --weights with them")
    if grouped and groups and (groups % processes or batch % groups or batch // groups < 2):
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


def check_run(
    settings: TrainingSettings, about: dict, images: ImageSet, source: Source | None
) -> None:
    """Raise InputError if the run `about`, on `images`, may not start in --model-path or continue
    from `source`.

    It may not if it would overwrite a run, or if `source` has another stage, task, data or pseudo
    labels, or other fixed settings.
    """
    require_writable(settings.model_path)
    if holds_run(settings.model_path) and not is_resuming(settings) and not settings.overwrite:
        raise InputError(
            f"{settings.model_path} already holds a run; resume it by leaving out --resume, or "
            "replace it with --overwrite"
        )
    for note in notes_on_length(settings, len(images)):
        print(note)
    if source is None:
        return
    checkpoint, path = source.checkpoint, source.path
    require_stage(checkpoint, (about["stage"],), path)
    known = checkpoint.get("known_settings")
    try:
        require_fixed(type(settings), settings.record(), checkpoint["args"], path, known)
    except InputError as error:
        again = "; --overwrite starts the run again" if is_resuming(settings) else ""
        raise InputError(f"{error}{again}") from None
    tasks = [task and Task.from_dict(task) for task in (checkpoint["task"], about["task"])]
    savedir = getattr(settings, "savedir", None)  # of stage (d)
    if tasks[0] != tasks[1]:
        requested = f"that in {savedir}" if savedir else "the requested one"
        raise InputError(f"{path} was trained for another task than {requested}")
    require_trained_on(checkpoint, images, path, ordered=True)
    if checkpoint.get("contents") not in (None, about["contents"]):
        print(f"note: files have changed since {path} was trained on these images")
    if checkpoint.get("pseudo_labels") != about.get("pseudo_labels"):  # both None but in stage (d)
        raise InputError(f"{path} was trained on other pseudo labels than those in {savedir}")
    if settings.epochs != (planned := checkpoint["args"]["epochs"]):
        note_on_other_length(settings, planned)


def note_on_other_length(settings: TrainingSettings, planned: int) -> None:
    """Print what it means that a run is resumed with other epochs than `planned`."""
    affected = ["the cosine schedule"] * settings.cos
    affected += ["α_t of eq. (5)"] * isinstance(settings, Distillation)
    if affected:
        changed = " and ".join(affected)
        print(f"note: --epochs {settings.epochs} instead of {planned} changes {changed}")
    if not settings.cos:
        drops = " ".join(map(str, settings.schedule)) or "none"
        print(f"note: a resumed run keeps its --schedule, {drops}")


def notes_on_length(settings: TrainingSettings, images: int) -> Iterator[str]:
    """Yield notes on settings that a run of these epochs on so many images is too short for."""
    epochs, drops = settings.epochs, settings.schedule
    if not epochs:
        return
    start = f"note: --epochs {epochs} is too short for"
    if drops and not settings.cos and min(drops) >= epochs:
        yield f"{start} a drop of the learning rate, the first one after epoch {min(drops)}"
    if isinstance(settings, ContrastiveTraining):
        keys = epochs * (images // settings.batch_size) * settings.batch_size
        if keys < settings.moco_k:
            yield (
                f"{start} --moco-k {settings.moco_k}: the run makes {keys:,} keys, the rest of "
                "the queue stays random"
            )
    if isinstance(settings, Distillation) and settings.correction == "dic":
        if epochs <= settings.dic_interval:
            yield f"{start} --dic-interval {settings.dic_interval}: DIC corrects nothing"


def prepare_run(
    stage: str,
    settings: ImageTraining,
    source: Source | None,
    data: Collection,
    images: ImageSet,
    **others: Any,
) -> tuple[Run, ImageSet]:
    """Return the trainer's description of a run, and the decoded training `images`, a part of
    `data`.

    Checkpoints and log will say of it stage, settings, images and `others`. Raises InputError as
    `check_run` does.
    """
    about = {
        "stage": stage,
        "args": settings.record(),
        "data": data.to_dict(),
        "base": images.fingerprint(),
        "contents": content_key([images], settings.cache_folder),
        "task": None,
        "made_by": provenance(),
        **others,
    }
    check_run(settings, about, images, source)
    run = Run(
        settings.model_path, about, save_checkpoint, source.take if source else None,
        source.path if source else None, is_resuming(settings), settings.overwrite,
        source.stamp if source and is_resuming(settings) else stamp(settings.model_path),
    )  # fmt: skip
    return run, settings.decoded(images, settings.image_size, settings.views_by == "batch")


def note_on_seen_classes(checkpoint: dict, where: Path, rare: ImageSet) -> None:
    """Print a note if the encoder was trained, without labels, on a class that is now rare."""
    seen = [name for name in rare.classes if name in checkpoint["base"]["counts"]]
    if seen and checkpoint["task"] is None:
        print(
            f"note: {where} was trained on the images of {listed(map(quoted, seen))}, now a rare "
            "class: they are not new to it"
        )
