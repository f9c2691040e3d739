"""Open images and draw tasks as the command line specifies."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import InputError, is_text, listed
from common.names import clean, printable, quoted

from . import Collection, open_dataset, own
from .cache import DEFAULT, cached
from .content import digests
from .duplicates import without_copies
from .episode import Task, choose_task, draw_task
from .groups import with_folders, with_groups
from .images import ImageSet, check_readable, image_set, without_unreadable
from .listing import NAMED, UNKNOWN, UNLABELLED, Listing, Row, found, summary
from .tables import IDS, existing, finder, require_unique, table_paths, table_rows

UNREADABLE = "unreadable"
MARKED = ("1", "yes", "y", "true", "t", "x", "support")  # in the column support
UNMARKED = ("", "0", "no", "n", "false", "f", "query")


def open_data(
    data: Path,
    base_classes: Sequence[str] | None = None,
    rare_classes: Sequence[str] | None = None,
    groups: Path | None = None,
    group_column: str | None = None,
    group_folders: bool = False,
    skip_unreadable: bool = False,
    allow_duplicates: bool = False,
    quiet: bool = False,
    cache_folder: Path | None = DEFAULT,
    use: Sequence[str] = ("base", "rare"),
    show: bool = True,
) -> Collection:
    """Open the dataset in the folder `data` and print what was found, if `show` (on rank 0).

    The others but `use` are flags. Copies are left out, unless `allow_duplicates`.
    `skip_unreadable` drops images that cannot be decoded from the parts in `use`. Raises InputError
    as `open_dataset`, `with_groups`, `with_folders` and `without_copies` do, and for two sources of
    groups.
    """
    if group_folders and (groups or group_column):
        raise InputError("--group-folders takes folders as groups; leave out --groups and "
                         "--group-column")  # fmt: skip
    column = None if groups else group_column  # of the images' CSV file
    opened = open_dataset(data, base_classes, rare_classes, column)
    if groups:
        opened = with_groups(opened, groups, group_column)
    if group_folders:
        opened = with_folders(opened)
    opened = without_copies(opened, cache_folder, allow_duplicates)
    if skip_unreadable:
        for part in use:
            _, errors = without_unreadable(getattr(opened, part), show)
            opened = opened.without(errors, UNREADABLE)
        if unread := [part for part in ("base", "rare") if part not in use]:
            note = f"{unread[0]} images are not read here; any unreadable ones are counted, too"
            opened = replace(opened, notes=(*opened.notes, note))
    if show:
        print(opened.summary(quiet))
    return opened


def open_unlabelled(
    paths: Sequence[Path], skip_unreadable: bool = False, quiet: bool = False
) -> tuple[ImageSet, dict, dict[str, str]]:
    """Open images without labels, and print what was found: those in folders and subfolders, image
    files, and the column `path` of CSV files. Their class is the placeholder "?". Also returns what
    was found as JSON types, and with `skip_unreadable`, by id, why an image cannot be decoded.

    The id is the path relative to the folder, or as written. Raises InputError if there are none,
    or as `find` of own images does.
    """
    listing = Listing()
    for path in dict.fromkeys(paths):
        if path.is_dir():
            if not listing.add_folder(path, path, UNKNOWN):
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
    if invalid := [ascii(row.id) for row in listing.rows if not is_text(row.id)]:
        raise InputError(f"--predict: paths that are not UTF-8; rename: {listed(invalid)}")
    require_unique("--predict", (os.path.abspath(row.path) for row in listing.rows))
    first = paths[0].resolve()
    name = printable(first.name if first.is_dir() else first.stem)
    name += f"_and_{len(paths) - 1}_more" if len(paths) > 1 else ""
    images = image_set(name, (UNKNOWN,), listing.rows)
    errors: dict[str, str] = {}
    if skip_unreadable:
        images, errors = without_unreadable(images, may_be_empty=True)
        listing.pass_over(UNREADABLE, *errors)
    about = name, {UNLABELLED: images.counts()}, listing.passed_over, listing.notes
    print(summary(*about, quiet))
    return images, found(*about), errors


def decoded(
    images: ImageSet,
    image_size: int,
    cache: Path | None,
    required: bool = False,
    quiet: bool = False,
) -> ImageSet:
    """Return `images` backed by a cache in the folder `cache`, or unchanged without one.

    Prints where the cache lies, as it holds images of patients, unless `quiet`.
    Raises InputError listing all images that cannot be decoded, or if a `required` cache is
    unavailable.
    """
    reason: object = "--no-cache"
    if cache:
        try:
            stored = cached(images, image_size, cache)
            if not quiet:
                (file,) = {path.file for path in stored.paths}
                held = f"pixels of {len(stored)} images, {os.path.getsize(file) / 1e6:.1f} MB"
                where = "--cache DIR puts it elsewhere, --no-cache keeps none"
                print(f"cache: {held}, {file}; {where}")
            return stored
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
    groups = data.groups if group_disjoint else None
    return draw_task(data.rare, n_way, k_shot, seed, groups, rare_split)


def choose(data: Collection, table: Path, group_disjoint: bool = False) -> Task:
    """Return the task whose support set is chosen in the CSV file `table` (see `read_support`).

    Raises InputError as `read_support` and `choose_task` do.
    """
    groups = data.groups if group_disjoint else None
    return choose_task(data.rare, read_support(data, table), groups)


def with_contents(task: Task, rare: ImageSet, cache: Path | None) -> Task:
    """Return `task` with the digests of its support images, for `require_contents`."""
    return replace(task, contents=tuple(digests(task.support(rare).paths, cache)))


def require_contents(
    task: Task, rare: ImageSet, query: ImageSet | None, cache: Path | None
) -> None:
    """Print a note if support images of `task` were edited since it was made; raise InputError if
    images of `query` now have the content of one."""
    support = task.support(rare)
    now = digests(support.paths, cache) if task.contents else ()
    changed = [i for i, old, new in zip(support.ids, task.contents, now) if old != new]
    if not changed:
        return
    names = f"{len(changed)} support images have changed since the task was made: "
    names += listed(map(printable, changed), NAMED)
    known = {*task.contents} - {""}
    found = zip(query.ids, digests(query.paths, cache)) if query else ()
    if same := [i for i, digest in found if digest in known]:
        raise InputError(
            f"{names}; their contents are now in the query set: "
            f"{listed(map(printable, same), NAMED)}; restore the files, or make the task anew"
        )
    print(f"note: {names}")


def read_support(data: Collection, table: Path) -> dict[str, list[str]]:
    """Return the ids of the support images by class that a CSV file names.

    Its columns are `label` and `image` or `path`: an image id, or a path, relative to the file's
    folder or to the current one. If it has a column `support`, only the rows marked there count (1,
    yes or x; not 0, no or an empty one), so that the CSV file of all images can be used. Raises
    InputError as `table_rows` does, for any other mark, and for an image that is listed twice, is
    not a rare one or has another class in `data`.
    """
    rare = data.rare
    found: dict[str, list[str]] = {}
    images = [*rare.rows(), *data.base.rows(), *data.others.rows()]
    class_of = {image.id: image.label for image in images}
    id_of: dict[str, str] = {}
    wrong = []
    find = finder(class_of)
    notes: list[str] = []
    for line, row in table_rows(table, ("label",), notes, (own.SUPPORT, *IDS)):
        mark = clean(row.get(own.SUPPORT, "x")).casefold().removesuffix(".0")
        if mark in UNMARKED:
            continue
        if mark not in MARKED:
            raise InputError(
                f"{table}, line {line}: the column support must be one of {listed(MARKED)} or of "
                f"{listed(UNMARKED[1:])}, got {row[own.SUPPORT]!r}"
            )
        label = clean(row["label"])
        name = next((row[column] for column in IDS if row.get(column)), None)
        if not name:
            raise InputError(f"{table}, line {line}: expected a column image or path, not empty")
        name = find(name)
        if name not in class_of:
            id_of = id_of or {os.path.realpath(str(image.path)): image.id for image in images}
            files = (existing(folder, name)[1] for folder in (table.parent, Path()))
            paths = map(os.path.realpath, files)
            name = next((id_of[path] for path in paths if path in id_of), name)
        copy_of, actual = {**data.base.copies, **rare.copies}.get(name), class_of.get(name)
        if actual is None:
            what = f"is a copy of {copy_of}" if copy_of else "is not an image there"
            if printable(name) in data.passed_over.get(UNREADABLE, ()):
                what = "cannot be read"
            wrong.append(f"line {line}: {name} {what}")
        elif actual not in rare.classes:
            wrong.append(f"line {line}: {name} is of {quoted(actual)}, which is no rare class")
        elif actual != label:
            wrong.append(f"line {line}: {name} is of class {quoted(actual)}, not {quoted(label)}")
        found.setdefault(label, []).append(name)
    for note in notes:
        print(f"note: {note}")
    if wrong:
        raise InputError(f"{table}: the support set must be rare images of {rare.name}: "
                         + listed(wrong, 3))  # fmt: skip
    require_unique(table, (name for names in found.values() for name in names))
    return found


def note_on_shared(shared: dict, query: int) -> None:
    """Print what `query` images share with the support set, from `Task.shared`."""
    copies, groups, without = (shared[name] for name in ("copies", "groups", "without_group"))
    if copies:
        print(f"note: {copies} of {query} query images are copies of support images")
    if groups:
        print(
            f"note: {groups} of {query} query images share a group (patient, lesion) with the "
            "support set; --group-disjoint, where a task is drawn, leaves them out"
        )
    if groups is not None and without:
        print(f"note: {without} images of a task have no group")
