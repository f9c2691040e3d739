"""From what the command line says of the data to images and tasks."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError, require_match

from . import Collection, lesion_groups, open_dataset
from .cache import cached
from .episode import Task, draw_task
from .images import ImageSet, check_readable, without_unreadable

CLASSES = ("base_classes", "rare_classes")  # of a user's own images


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
