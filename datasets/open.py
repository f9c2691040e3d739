"""Open images and draw tasks as the command line specifies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.errors import InputError

from . import Collection, lesion_groups, open_dataset
from .cache import cached
from .episode import Task, draw_task
from .images import ImageSet, check_readable, without_unreadable


class DataSettings(Protocol):
    """The settings that say how data is opened."""

    @property
    def base_classes(self) -> list[str] | None: ...
    @property
    def rare_classes(self) -> list[str] | None: ...
    @property
    def skip_unreadable(self) -> bool: ...
    @property
    def quiet(self) -> bool: ...


def open_data(
    folder: Path,
    settings: DataSettings,
    use: Sequence[str] = ("base", "rare"),
    show: bool = True,
) -> Collection:
    """Open the dataset in `folder` and print what was found, if `show` (on rank 0).

    --skip-unreadable drops images that cannot be decoded from the parts in `use`. Raises InputError
    as `open_dataset` does.
    """
    data = open_dataset(folder, settings.base_classes, settings.rare_classes)
    if settings.skip_unreadable:
        for part in use:
            images = getattr(data, part)
            kept = set(without_unreadable(images, show).ids)
            data = data.without((i for i in images.ids if i not in kept), "unreadable")
    if show:
        print(data.summary(settings.quiet))
    return data


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
    lesions = lesion_groups(folder) if lesion_disjoint else None
    return draw_task(rare, n_way, k_shot, seed, lesions, rare_split)
