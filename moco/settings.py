"""From parsed arguments to what the method takes, and the checks on what was given."""

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from common.errors import InputError, listed, refusing, require_match
from common.files import require_writable
from datasets import Collection, lesion_groups, open_dataset
from datasets.cache import cached
from datasets.episode import Task, draw_task
from datasets.images import ImageSet, check_readable, require_same, without_unreadable
from models import Encoder, build_encoder
from trainer import distributed
from trainer.checkpoint import CHECKPOINT, PREVIOUS
from trainer.cli import require_sound
from trainer.launch_plan import Plan, plan
from trainer.performance import has_bfloat16, prepare
from trainer.provenance import command

from .checkpoint import load_checkpoint, query_encoder
from .options import pretraining_parser

# What a run may not change when it is resumed; the rest (epochs, workers, …) may.
FIXED = (
    "arch", "image_size", "moco_dim", "moco_k", "moco_m", "moco_t", "mlp", "aug_plus", "bn_groups",
    "batch_size", "lr", "schedule", "cos", "momentum", "wd", "amp", "views_by", "seed", "p_label",
    "pseudo_label", "alpha", "losses", "cls_loss", "correction", "dic_gamma", "dic_interval",
    "dic_dispersion", "simclr_t", "teacher", "distill_t", "distill_weight", "base_classes",
    "rare_classes",
)  # fmt: skip
OF_THE_MACHINE = (
    "device", "gpu", "workers", "batch_size", "amp", "cache", "no_cache", "overwrite",
)  # fmt: skip
CLASSES = ("base_classes", "rare_classes")  # of a user's own images
# What a student takes over from its teacher where it is not told otherwise; the first few it must.
BORN_WITH = ("arch", "image_size", "moco_dim", "mlp", *CLASSES)
INHERITED = (
    *BORN_WITH, "moco_k", "moco_m", "moco_t", "aug_plus", "bn_groups",
    "epochs", "batch_size", "lr", "schedule", "cos", "momentum", "wd", "amp",
)  # fmt: skip


def open_data(
    folder: Path,
    args: argparse.Namespace,
    made: dict | None = None,
    where: Path | None = None,
    use: Sequence[str] = ("base", "rare"),
) -> Collection:
    """The dataset in `folder`, of the classes that `args` names or that the stage before, whose
    arguments `made` are in the file `where`, was given; `args` then has them, too. With
    --skip-unreadable, those parts that are for `use` lack the images that cannot be decoded.

    Raises InputError as `open_dataset` does, or if both name classes and differ.
    """
    made = made or {}
    if any(made.get(name) for name in CLASSES):
        given = {name: getattr(args, name) for name in CLASSES}
        require_match(given, made, where)
        vars(args).update({name: made[name] for name in CLASSES})
    data = open_dataset(folder, args.base_classes, args.rare_classes)
    return dataclasses.replace(data, **{part: readable(args, getattr(data, part)) for part in use})


def readable(args: argparse.Namespace, images: ImageSet) -> ImageSet:
    """`images`; with --skip-unreadable, without those that cannot be decoded."""
    return without_unreadable(images) if args.skip_unreadable else images


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
    device = distributed.pick_device(args.device, args.gpu if torch.cuda.is_available() else None)
    best = {
        "amp": has_bfloat16(device),
        "views_by": "batch" if device.type == "cuda" and not args.no_cache else "pil",
    }
    for name, value in best.items():
        if getattr(args, name) is None:
            known = before.get(name)
            setattr(args, name, value if known is None else known)


def decoded(args: argparse.Namespace, images: ImageSet, image_size: int) -> ImageSet:
    """`images`, to be read many times: from the cache or, without one, from their files.

    Raises InputError with the paths of all images that cannot be decoded, or if the views that
    `args` asks for need a cache and there is none.
    """
    reason = "--no-cache"
    if not args.no_cache:
        try:
            return cached(images, image_size, args.cache)
        except OSError as error:  # a full disk, a folder that is read-only
            reason = error.strerror or error
    if getattr(args, "views_by", "pil") == "batch":
        raise InputError(
            f"--views batch needs the cache of decoded images ({reason}); --cache DIR says where, "
            "--views pil does without"
        )
    if not args.no_cache:
        print(f"note: no cache in {args.cache} ({reason}); images are decoded each time")
    check_readable(images)
    return images


def draw(folder: Path, args: argparse.Namespace, rare: ImageSet, k_shot: int | None) -> Task:
    """A task as the command line asks for it. Raises InputError as `draw_task` does."""
    lesions = lesion_groups(folder) if args.lesion_disjoint else None
    return draw_task(rare, args.n_way, k_shot, args.seed or 0, lesions, args.rare_split)


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
    given = {name: value for name, value in recorded(args).items() if name in FIXED}
    require_match(given, checkpoint["args"], args.resume)
    if checkpoint["task"] != about["task"]:
        asked = f"that in {args.savedir}" if hasattr(args, "savedir") else "the one asked for"
        raise InputError(f"{args.resume} was trained for another task than {asked}")
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


def training_values(args: argparse.Namespace) -> dict:
    """What `engine.fit` takes from the command line."""
    names = (
        "model_path", "resume", "overwrite", "epochs", "start_epoch", "batch_size", "image_size",
        "aug_plus", "views_by", "lr", "schedule", "cos", "momentum", "wd", "amp", "compile",
        "seed", "print_freq", "knn_every", "save_minutes", "detect_anomaly",
    )  # fmt: skip
    here = launch_plan(args).on_machine if hasattr(args, "nproc") else 1  # baselines: one process
    workers = distributed.readers(args.workers, here)
    values = {name: getattr(args, name) for name in names}
    return values | {"workers": workers, "goes_on": goes_on(args)}


def ready_encoder(args: argparse.Namespace, checkpoint: dict) -> tuple[Encoder, torch.device]:
    """f_q of a checkpoint, frozen, ready on the device that `args` names, and that device; whether
    in mixed precision is then in `args`, too."""
    device = distributed.pick_device(args.device, args.gpu)
    if args.amp is None:
        args.amp = has_bfloat16(device)
    encoder = query_encoder(checkpoint)
    prepare(encoder, device, args.amp)
    return encoder, device


def encoder_values(args: argparse.Namespace) -> dict:
    """What `builder.MoCo` takes from the command line."""
    return {
        "make_encoder": functools.partial(build_encoder, args.arch, args.moco_dim, args.mlp),
        "embedding_dim": args.moco_dim,
        "queue_size": args.moco_k,
        "encoder_momentum": args.moco_m,
        "temperature": args.moco_t,
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


def launch_plan(args: argparse.Namespace) -> Plan:
    """Which processes to start."""
    names = (
        "device", "gpu", "multiprocessing_distributed", "nproc", "world_size", "rank", "dist_url",
        "dist_backend", "dist_timeout",
    )  # fmt: skip
    return plan(**{name: getattr(args, name) for name in names})


def recorded(args: argparse.Namespace) -> dict:
    """The arguments as plain values, for a checkpoint or a log."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
