"""From a folder, and what a command says of it, to images and tasks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError

from . import Collection, lesion_groups, open_dataset
from .cache import cached
from .episode import Task, draw_task
from .images import ImageSet, check_readable, without_unreadable


def open_data(
    folder: Path,
    base_classes: Sequence[str] | None,
    rare_classes: Sequence[str] | None,
    skip_unreadable: bool = False,
    use: Sequence[str] = ("base", "rare"),
) -> Collection:
    """The dataset in `folder`; with `skip_unreadable`, those parts that are for `use` lack the
    images that cannot be decoded. Raises InputError as `open_dataset` does."""
    data = open_dataset(folder, base_classes, rare_classes)
    if not skip_unreadable:
        return data
    return dataclasses.replace(
        data, **{part: without_unreadable(getattr(data, part)) for part in use}
    )


def decoded(
    images: ImageSet, image_size: int, cache: Path | None, needed: bool = False
) -> ImageSet:
    """`images`, to be read many times: from the folder `cache` or, without one, from their files.

    Raises InputError with the paths of all images that cannot be decoded, or if a cache is `needed`
    and there is none.
    """
    reason: object = "--no-cache"
    if cache:
        try:
            return cached(images, image_size, cache)
        except OSError as error:  # a full disk, a folder that is read-only
            reason = error.strerror or error
    if needed:
        raise InputError(
            f"--views batch needs the cache of decoded images ({reason}); --cache DIR says where, "
            "--views pil does without"
        )
    if cache:
        print(f"note: no cache in {cache} ({reason}); images are decoded each time")
    check_readable(images)
    return images


def draw(
    folder: Path,
    rare: ImageSet,
    n_way: int | None,
    k_shot: int | None,
    seed: int,
    lesion_disjoint: bool = False,
    rare_split: bool = False,
) -> Task:
    """A task as the command line asks for it. Raises InputError as `draw_task` does."""
    lesions = lesion_groups(folder) if lesion_disjoint else None
    return draw_task(rare, n_way, k_shot, seed, lesions, rare_split)
