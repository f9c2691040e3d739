"""Is there a run already, does it fit, does it go on; and what a training is handed."""

import argparse
import functools
import json
import os
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError, listed, refusing, require_match
from common.files import require_writable
from datasets.images import ImageSet, require_same
from datasets.open import CLASSES
from models import default_embedding_dim
from trainer.checkpoint import CHECKPOINT, PREVIOUS
from trainer.cli import require_sound
from trainer.distributed import pick_device
from trainer.performance import has_bfloat16
from trainer.provenance import command

from .checkpoint import load_checkpoint, save_checkpoint
from .config import (
    BORN_WITH,
    FIXED,
    INHERITED,
    OF_THE_MACHINE,
    pretraining_parser,
    readers_of,
    recorded,
)
from .evaluate import encode, knn_score
from .loader import EpochBatches, ending, training_loader


def holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def _is_repeated(folder: Path) -> bool:
    """Was the run in `folder` made by the very command that this process was given?"""
    return load_checkpoint(folder)["made_by"].get("command") == command()


def settle(args: argparse.Namespace) -> None:
    """Decide what the command line of a training leaves open: whether it goes on with a run that
    --model_path holds (also where --resume names what that was begun from, if it is the same
    command); the rest as that run has it, or as is fastest on the device.

    Raises InputError if --resume is no checkpoint.
    """
    there = holds_run(args.model_path)
    if there and args.overwrite and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        before = load_checkpoint(args.model_path)["made_by"]  # this job's own, before its requeue?
        args.overwrite = before.get("job") != os.environ.get("SLURM_JOB_ID")
    if there and not args.overwrite and (args.resume is None or _is_repeated(args.model_path)):
        args.resume = args.model_path
    before = load_checkpoint(args.resume)["args"] if args.resume else {}
    device = pick_device(args.device, args.gpu if torch.cuda.is_available() else None)
    best = {
        "amp": has_bfloat16(device),
        "views_by": "batch" if device.type == "cuda" and not args.no_cache else "pil",
    }
    if hasattr(args, "moco_dim"):
        best["moco_dim"] = default_embedding_dim(args.arch)
    for name, value in best.items():
        if getattr(args, name) is None:
            known = before.get(name)
            setattr(args, name, value if known is None else known)


def batchnorm_groups(args: argparse.Namespace, base_images: int, processes: int) -> int:
    """BatchNorm groups per process, after checking that the batch can be cut up as asked.

    Raises InputError if the batch does not divide among processes and groups, the queue not
    into batches, or the base set does not fill one batch.
    """
    batch, groups = args.batch_size, max(args.bn_groups, processes)
    if batch % processes:
        raise InputError(f"--batch-size {batch} does not divide among {processes} processes")
    if groups % processes or batch % groups or batch // groups < 2:
        raise InputError(
            f"--batch-size {batch} does not make {groups} BatchNorm groups of two images or more "
            f"in {processes} process(es); change -b or --bn-groups"
        )
    if args.moco_k % batch:
        raise InputError(
            f"--moco-k {args.moco_k}, the queue, is not a multiple of --batch-size {batch}; "
            f"{-(-args.moco_k // batch) * batch} would be"
        )
    if base_images < batch:
        raise InputError(f"--batch-size {batch} is more than the {base_images} base images")
    return groups // processes


def goes_on(args: argparse.Namespace) -> bool:
    """Is --resume the very run that --model_path holds?"""
    there = args.model_path.resolve()
    its = (there, there / CHECKPOINT, there / PREVIOUS)
    return bool(args.resume) and args.resume.resolve() in its


def check_run(args: argparse.Namespace, about: dict) -> None:
    """Is the run that `about` describes free to start at --model_path, or to go on from --resume?

    Raises InputError if --model_path holds a run that would be overwritten, or if --resume is
    not there, or is of another stage, other arguments, data, task or pseudo labels.
    """
    require_writable(args.model_path)
    if holds_run(args.model_path) and not goes_on(args) and not args.overwrite:
        raise InputError(
            f"{args.model_path} already holds a run, which goes on without --resume; --overwrite "
            "starts anew"
        )
    if args.resume is None:
        return
    checkpoint = load_checkpoint(args.resume, (about["stage"],))
    fixed = checkpoint.get("tells", FIXED)
    given = {name: value for name, value in recorded(args).items() if name in fixed}
    require_match(given, checkpoint["args"], args.resume)
    if checkpoint["task"] != about["task"]:
        asked = f"that in {args.savedir}" if hasattr(args, "savedir") else "the one asked for"
        raise InputError(f"{args.resume} was trained for another task than {asked}")
    if "tells" in checkpoint:
        print(f"note: {args.resume} does not tell which images it was trained on")
    else:
        require_same(checkpoint["base"], about["base"], f"{args.resume} was trained on")
    if checkpoint.get("pseudo_labels") != about.get("pseudo_labels"):
        raise InputError(
            f"{args.resume} was trained on other pseudo labels than those in {args.savedir}"
        )
    planned = checkpoint["args"]["epochs"]
    if args.epochs != planned and (args.cos or about["stage"] == "distill"):
        what = "α_t of eq. (5)" if about["stage"] == "distill" else "the cosine schedule"
        print(f"note: --epochs {args.epochs} instead of {planned} moves {what} from here on")


def inherit(args: argparse.Namespace, teacher: dict) -> None:
    """Fill in the settings that were not given, from the teacher's.

    Raises InputError if what was given would make a student of another shape, or if `teacher`
    lacks a setting.
    """
    with refusing(f"the teacher of the pseudo labels in {args.savedir} is not sound"):
        needed = set(INHERITED) - set(CLASSES)
        if missing := sorted(name for name in needed if teacher.get(name) is None):
            raise ValueError(f"it does not tell its {listed(missing)}")
        require_sound(pretraining_parser(), teacher)
    require_match({name: getattr(args, name) for name in BORN_WITH}, teacher, args.savedir)
    for name in INHERITED:
        if getattr(args, name) is None:
            setattr(args, name, teacher[name])


def training_values(
    args: argparse.Namespace, images: ImageSet, device: torch.device, views: int = 2
) -> dict:
    """What `trainer.fit` takes from the command line, and what it is handed of the method's: how
    `views` random views of `images` are made, k-NN scores, and checkpoints."""
    names = (
        "model_path", "resume", "overwrite", "epochs", "start_epoch", "lr", "schedule", "cos",
        "momentum", "wd", "amp", "compile", "seed", "print_freq", "knn_every", "save_minutes",
        "detect_anomaly",
    )  # fmt: skip
    workers = readers_of(args)
    batches = EpochBatches(len(images), args.batch_size, args.seed)
    loader = functools.partial(
        training_loader, images, batches, views, args.seed, args.image_size, args.aug_plus,
        args.views_by, workers, device,
    )  # fmt: skip

    def score(model: nn.Module) -> dict[str, float]:
        encoder = model.query_encoder
        embeddings = encode(encoder, images, args.image_size, workers=workers, device=device)
        return knn_score(embeddings, images.labels)

    return {
        **{name: getattr(args, name) for name in names},
        "goes_on": goes_on(args),
        "batches": batches,
        "loader": ending(loader),
        "score": score,
        "load": load_checkpoint,
        "save": save_checkpoint,
    }


def training_of(checkpoint: dict) -> dict:
    """What a checkpoint's training has in common with those of other seeds."""
    args = checkpoint["args"]
    kept = {name: args[name] for name in FIXED if name in args and name not in ("seed", "teacher")}
    return {"stage": checkpoint["stage"], **kept}


def is_same_work(args: argparse.Namespace, before: dict, checkpoint: dict) -> bool:
    """Does what `before`, the file of an earlier run, says of itself hold for this one, too: the
    same command, but for where and how fast it runs, and the same checkpoint?"""

    def kept(values: dict) -> dict:
        return {name: value for name, value in values.items() if name not in OF_THE_MACHINE}

    if args.amp not in (None, before.get("args", {}).get("amp")):  # asked for, not the machine's
        return False
    made_from = (before.get("epoch"), before.get("checkpoint_made_by"))
    same = kept(before.get("args", {})) == kept(json.loads(json.dumps(recorded(args))))
    return same and made_from == (checkpoint["epoch"], checkpoint["made_by"])
