"""Open images and draw tasks as the command line specifies."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.errors import InputError, listed

from . import Collection, lesion_groups, open_dataset, own
from .cache import cached
from .episode import Task, draw_task
from .images import ImageSet, check_readable, image_set, without_unreadable
from .listing import NAMED, UNKNOWN, Listing, Row, found, summary
from .tables import require_unique, table_paths, table_rows

UNREADABLE = "unreadable"


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
            data = data.without((i for i in images.ids if i not in kept), UNREADABLE)
    if show:
        print(data.summary(settings.quiet))
    return data


def open_unlabelled(paths: Sequence[Path], settings: DataSettings) -> tuple[ImageSet, dict]:
    """Open images without labels, and print what was found: those in folders and subfolders, image
    files, and the column `path` of CSV files. Their class is the placeholder "?". Also returns what
    was found as JSON types.

    The id is the path relative to the folder, or as written. Raises InputError if there are none,
    or as `find` of own images does.
    """
    listing = Listing()
    for path in dict.fromkeys(paths):
        if path.is_dir():
            before = len(listing.rows)
            listing.add_folder(path, path, UNKNOWN)
            if len(listing.rows) == before:
                names = [name for names in listing.passed_over.values() for name in names]
                rest = f"; passed over: {listed(names, NAMED)}" if names else ""
                raise InputError(f"no images in {path}{rest}")
        elif own.is_table(path):
            files = table_paths(path, table_rows(path, ("path",), listing.notes))
            listing.rows += [Row(i, file, UNKNOWN) for i, file in files]
        elif path.exists():
            listing.rows.append(Row(str(path), path, UNKNOWN))
        else:
            raise InputError(f"neither a folder, an image nor a CSV file: {path}")
    if len(paths) > 1:  # ids must differ
        listing.rows = [row._replace(id=str(row.path)) for row in listing.rows]
    require_unique("--predict", (os.path.abspath(row.path) for row in listing.rows))
    first = paths[0].resolve()
    name = first.name if first.is_dir() else first.stem
    name += f"_and_{len(paths) - 1}_more" if len(paths) > 1 else ""
    images = image_set(name, (UNKNOWN,), listing.rows)
    if settings.skip_unreadable:
        kept = without_unreadable(images)
        listing.pass_over(UNREADABLE, *sorted({*images.ids} - {*kept.ids}))
        images = kept
    about = name, {"images": images.counts()}, listing.passed_over, listing.notes
    print(summary(*about, settings.quiet))
    return images, found(*about)


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
