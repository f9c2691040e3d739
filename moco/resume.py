"""Is there a run already, does it fit, does it go on?"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import InputError
from common.files import require_writable
from datasets.images import require_same
from models import default_embedding_dim
from trainer.checkpoint import CHECKPOINT, PREVIOUS
from trainer.config import Output, TrainingSettings
from trainer.distributed import pick_device
from trainer.performance import has_bfloat16
from trainer.provenance import command
from trainer.settings import Settings, require_fixed, resolve
from trainer.trainer import Run

from .checkpoint import load_checkpoint, require_stage, save_checkpoint
from .config import STAGES, ContrastiveTraining, Distillation, ImageTraining

S = TypeVar("S", bound=Settings)
T = TypeVar("T", bound=ImageTraining)


class Source:
    """The checkpoint that a run continues from, read once in each process."""

    def __init__(self, path: Path):
        self.path = path
        self._checkpoint: dict | None = None

    @property
    def checkpoint(self) -> dict:
        """What the checkpoint holds. Raises InputError as `load_checkpoint` does."""
        if self._checkpoint is None:
            self._checkpoint = load_checkpoint(self.path)
        return self._checkpoint

    def __getstate__(self) -> dict:
        return {"path": self.path, "_checkpoint": None}  # other processes read it themselves


def holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def resolve_training(
    cls: type[T],
    given: Mapping[str, Any],
    inherited: Mapping[str, Any] | None = None,
    where: Path | str = "",
) -> tuple[T, Source | None]:
    """Return the settings of a training, and what it continues from, if anything.

    It goes on with a run that --model_path holds, also where --resume names what that was begun
    from, if it is the same command; what nobody says is as that run has it, else as is fastest on
    the device. Raises InputError if --resume is no checkpoint, or as `resolve` does.
    """
    given = dict(given)
    folder, asked = given["model_path"], given.get("resume")
    source = Source(asked) if asked else None
    if holds_run(folder):
        its = Source(folder)
        if given.get("overwrite") and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            job = its.checkpoint["made_by"].get("job")  # this job's own, before its requeue?
            given["overwrite"] = job != os.environ.get("SLURM_JOB_ID")
        if not given.get("overwrite"):
            repeated = asked and its.checkpoint["made_by"].get("command") == command()
            if asked is None or repeated:
                given["resume"], source = folder, its
    arch = given.get("arch") or (inherited or {}).get("arch") or cls.fields()["arch"].default
    gpu = given.get("gpu") if torch.cuda.is_available() else None
    device = pick_device(given.get("device", "auto"), gpu)
    auto = {
        "amp": has_bfloat16(device),
        "views_by": "batch" if device.type == "cuda" and not given.get("no_cache") else "pil",
        "moco_dim": default_embedding_dim(arch),
    }
    if source:
        before = source.checkpoint["args"]
        auto |= {name: before[name] for name in auto if before.get(name) is not None}
    return resolve(cls, given, auto, inherited, where), source


def resolve_encoding(
    cls: type[S], given: Mapping[str, Any], checkpoint: dict, where: Path
) -> tuple[S, torch.device]:
    """Return the settings of a command that encodes with the frozen network of a checkpoint, read
    from `where`, and its device. Raises InputError as `resolve` does."""
    device = pick_device(given.get("device", "auto"), given.get("gpu"))
    return resolve(cls, given, {"amp": has_bfloat16(device)}, checkpoint["args"], where), device


def batchnorm_groups(settings: ContrastiveTraining, base_images: int, processes: int) -> int:
    """BatchNorm groups per process, after checking that the batch can be cut up as asked.

    Raises InputError if the batch does not divide among processes and groups, the queue not
    into batches, or the base set does not fill one batch.
    """
    batch, groups = settings.batch_size, max(settings.bn_groups, processes)
    if batch % processes:
        raise InputError(f"--batch-size {batch} does not divide among {processes} processes")
    if groups % processes or batch % groups or batch // groups < 2:
        raise InputError(
            f"--batch-size {batch} does not make {groups} BatchNorm groups of two images or more "
            f"in {processes} process(es); change -b or --bn-groups"
        )
    if settings.moco_k % batch:
        raise InputError(
            f"--moco-k {settings.moco_k}, the queue, is not a multiple of --batch-size {batch}; "
            f"{-(-settings.moco_k // batch) * batch} would be"
        )
    if base_images < batch:
        raise InputError(f"--batch-size {batch} is more than the {base_images} base images")
    return groups // processes


def is_resuming(settings: Output) -> bool:
    """Is --resume the very run that --model_path holds?"""
    there = settings.model_path.resolve()
    its = (there, there / CHECKPOINT, there / PREVIOUS)
    return settings.resume is not None and settings.resume.resolve() in its


def check_run(settings: TrainingSettings, about: dict, source: Source | None) -> None:
    """Is the run that `about` describes free to start at --model_path, or to go on from `source`?

    Raises InputError if --model_path holds a run that would be overwritten, or if `source` is of
    another stage, other settings, data, task or pseudo labels.
    """
    require_writable(settings.model_path)
    if holds_run(settings.model_path) and not is_resuming(settings) and not settings.overwrite:
        raise InputError(
            f"{settings.model_path} already holds a run, which goes on without --resume; "
            "--overwrite starts anew"
        )
    if source is None:
        return
    checkpoint, path = source.checkpoint, source.path
    require_stage(checkpoint, (about["stage"],), path)
    require_fixed(
        type(settings), settings.record(), checkpoint["args"], path, checkpoint.get("tells")
    )
    if checkpoint["task"] != about["task"]:
        asked = "the one asked for"
        if isinstance(settings, Distillation):
            asked = f"that in {settings.savedir}"
        raise InputError(f"{path} was trained for another task than {asked}")
    if "tells" in checkpoint:
        print(f"note: {path} does not tell which images it was trained on")
    else:
        require_same(checkpoint["base"], about["base"], f"{path} was trained on")
    moved = "the cosine schedule" if settings.cos else None
    if isinstance(settings, Distillation):
        if checkpoint.get("pseudo_labels") != about.get("pseudo_labels"):
            raise InputError(
                f"{path} was trained on other pseudo labels than those in {settings.savedir}"
            )
        moved = "α_t of eq. (5)"
    planned = checkpoint["args"]["epochs"]
    if settings.epochs != planned and moved:
        print(f"note: --epochs {settings.epochs} instead of {planned} moves {moved} from here on")


def run_of(settings: Output, about: dict, source: Source | None) -> Run:
    """Return the run that `about` describes, as the trainer takes it."""
    return Run(
        settings.model_path, about, save_checkpoint, source.checkpoint if source else None,
        source.path if source else None, is_resuming(settings), overwrite=settings.overwrite,
    )  # fmt: skip


def training_of(checkpoint: dict) -> dict:
    """What a checkpoint's training has in common with those of other seeds."""
    args = checkpoint["args"]
    fixed = STAGES[checkpoint["stage"]].settings.names(fixed=True)
    kept = {name: args[name] for name in fixed if name not in ("seed", "teacher")}
    return {"stage": checkpoint["stage"], **kept}


def is_same_work(
    settings: Settings, given: Mapping[str, Any], before: dict, checkpoint: dict
) -> bool:
    """Does what `before`, the file of an earlier run, says of itself hold for this one, too: the
    same command, but for where and how fast it runs, and the same checkpoint?"""
    if "amp" in given and given["amp"] != before.get("args", {}).get("amp"):  # not the machine's
        return False
    try:
        args = type(settings).complete(before.get("args", {}))
    except ValueError:
        return False
    now = json.loads(json.dumps(settings.record()))
    lasting = type(settings).names(runtime=False)
    same = all(args[name] == now[name] for name in lasting)
    made_from = (before.get("epoch"), before.get("checkpoint_made_by"))
    return same and made_from == (checkpoint["epoch"], checkpoint["made_by"])
