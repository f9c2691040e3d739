"""Open images and draw tasks as the command line specifies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.errors import InputError

from . import Collection, isic2018, open_dataset
from .cache import cached, default_folder
from .duplicates import without_copies
from .episode import Task, draw_task
from .groups import with_groups
from .images import ImageSet, check_readable, without_unreadable


class DataSettings(Protocol):
    """The settings that say how data is opened.

    Also read where they exist: `cache_folder`, `groups` and `group_column`.
    """

    @property
    def base_classes(self) -> list[str] | None: ...
    @property
    def rare_classes(self) -> list[str] | None: ...
    @property
    def skip_unreadable(self) -> bool: ...
    @property
    def allow_duplicates(self) -> bool: ...
    @property
    def quiet(self) -> bool: ...


def open_data(
    folder: Path,
    settings: DataSettings,
    use: Sequence[str] = ("base", "rare"),
    show: bool = True,
) -> Collection:
    """Open the dataset in `folder` and print what was found, if `show` (on rank 0).

    Copies are left out, unless --allow-duplicates is given. --skip-unreadable drops images that
    cannot be decoded from the parts in `use`. Raises InputError as `open_dataset`, `with_groups`
    and `without_copies` do.
    """
    table, column = getattr(settings, "groups", None), getattr(settings, "group_column", None)
    data = open_dataset(
        folder, settings.base_classes, settings.rare_classes, None if table else column
    )
    if table:
        data = with_groups(data, table, column)
    cache = getattr(settings, "cache_folder", default_folder())
    data = without_copies(data, cache, settings.allow_duplicates)
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
    data: Collection,
    n_way: int | None,
    k_shot: int | None,
    seed: int,
    group_disjoint: bool = False,
    rare_split: bool = False,
) -> Task:
    """Draw a task as the command line specifies. Raises InputError as `draw_task` does."""
    if group_disjoint and not data.groups:
        raise InputError(
            f"--group-disjoint: {data.name} has no groups (patients, lesions); give them as a "
            f"column group of a CSV file of images, as --groups FILE with the columns image,group, "
            f"or for {isic2018.NAME} as {isic2018.GROUPINGS}"
        )
    groups = data.groups if group_disjoint else None
    return draw_task(data.rare, n_way, k_shot, seed, groups, rare_split)


def notes_of(shared: dict, query: int) -> list[str]:
    """Return notes on what `query` images share with the support set, from `Task.shared`."""
    copies, groups, without = (shared[name] for name in ("copies", "groups", "without_group"))
    notes = []
    if copies:
        notes.append(f"note: {copies} of {query} query images are copies of support images")
    if groups:
        notes.append(
            f"note: {groups} of {query} query images share a group (patient, lesion) with the "
            "support set; --group-disjoint, where a task is drawn, leaves them out"
        )
    if groups is not None and without:
        notes.append(f"note: {without} images of the task have no group")
    return notes
