"""Open images and draw tasks as the command line specifies."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
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
    """Open the dataset in `folder`; raises InputError as `open_dataset` does.

    `skip_unreadable` drops images that cannot be decoded from the parts in `use`.
    """
    data = open_dataset(folder, base_classes, rare_classes)
    if not skip_unreadable:
        return data
    return dataclasses.replace(
        data, **{part: without_unreadable(getattr(data, part)) for part in use}
    )


def decoded(
    images: ImageSet, image_size: int, cache: Path | None, required: bool = False
) -> ImageSet:
    """Return `images` backed by a cache in the folder `cache`, or unchanged without one.

    Raises InputError listing all images that cannot be decoded, or if a `required` cache is
    unavailable.
    """
    reason: object = "--no-cache"
    if cache:
        try:
            return cached(images, image_size, cache)
        except OSError as error:  # disk full or read-only
            reason = error.strerror or error
    if required:
        raise InputError(
            f"--views batch requires the cache of decoded images ({reason}); choose its folder "
            "with --cache DIR, or use --views pil"
        )
    if cache:
        print(f"note: cache {cache} is unavailable ({reason}); decoding images on every read")
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
    """Draw a task as the command line specifies. Raises InputError as `draw_task` does."""
    return next(draw_tasks(folder, rare, n_way, k_shot, [seed], lesion_disjoint, rare_split))


def draw_tasks(
    folder: Path,
    rare: ImageSet,
    n_way: int | None,
    k_shot: int | None,
    seeds: Iterable[int],
    lesion_disjoint: bool = False,
    rare_split: bool = False,
) -> Iterator[Task]:
    """Draw a task for each of `seeds`, as `draw` does."""
    lesions = lesion_groups(folder) if lesion_disjoint else None
    for seed in seeds:
        yield draw_task(rare, n_way, k_shot, seed, lesions, rare_split)
