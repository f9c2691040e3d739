"""User-provided images: one folder per class, or a CSV file of paths and labels."""

import functools
import os
from pathlib import Path

from common.errors import InputError, listed
from common.names import clean, printable, quoted

from .listing import NOT_IMAGES, OUTSIDE, Folder, Listing, Row, is_system, is_system_folder
from .tables import has_columns, table_paths, table_rows, without_missing

NAME = None  # taken from the folder or file name
BASE_CLASSES = RARE_CLASSES = None  # given by the user
EMPTY = "class folders without images"
BESIDE = "tables beside class folders (pass one as DATA to read it instead of the folders)"
FEWEST = 3  # classes that a data set needs: one common and two rare ones
TABLES = (".csv", ".tsv", ".txt")
COLUMNS = ("path", "label")
GROUP = "group"  # an optional column: the patient or lesion
SUPPORT = "support"  # a column that --support reads
LAYOUT = "one folder per class, or one CSV file with the columns path and label"


def recognises(root: Path) -> bool:
    """Return whether `root` is a CSV file or has subfolders or one."""
    return is_table(root) or bool(_folders(root) or _tables(root))


def is_table(path: Path) -> bool:
    """Return whether a path has the extension of a CSV file."""
    return path.suffix.lower() in TABLES


def find(root: Path, group_column: str | None = None) -> Listing:
    """Return every image, with its group where the CSV file has a column `group`.

    The id is the path relative to the folder `root`, or as written in the CSV file, where paths
    are absolute or relative to the file's folder. A folder with one CSV or TSV file and too few
    subfolders with images to be classes stands for that file. `group_column` is another name of
    that column, which must then exist. Raises InputError for a folder without images in class
    folders, or with several such files instead; for a CSV file as `table_paths` does.
    """
    if root.is_file():
        return _from_csv(root, group_column)
    listing, tables = _from_folders(root), _tables(root)
    if tables and len({row.label for row in listing.rows}) < FEWEST:
        if len(tables) > 1:
            names = listed(table.name for table in tables)
            raise InputError(
                f"{root} has {len(tables)} tables and no {FEWEST} class folders; pass one of the "
                f"tables instead of the folder: {names}"
            )
        listing = _from_csv(tables[0], group_column)
        _pass_over_unlisted(listing, root, tables[0])
        return listing
    if not listing.rows:
        raise InputError(f"no images in the subfolders of {root}; expected {LAYOUT}")
    if group_column:
        raise no_groups(root, group_column)
    return listing


def no_groups(root: Path, group_column: str) -> InputError:
    """Return the error for a column of groups where there is no table."""
    return InputError(
        f"--group-column {group_column}: {root} is not a CSV file of images; pass a CSV file of "
        "image ids and groups as --groups"
    )


def _tables(root: Path) -> list[Path]:
    entries = sorted(root.iterdir()) if root.is_dir() else ()
    tables = [f for f in entries if f.suffix.lower() in TABLES[:2] and not is_system(f.name)]
    return [table for table in tables if table.is_file()]  # opening a named pipe blocks


def _pass_over_unlisted(listing: Listing, root: Path, table: Path) -> None:
    """Pass over what is in `root`, but not in the `table` there."""
    real = functools.cache(os.path.realpath)  # slow: once a folder

    def file(path: str) -> tuple[str, str]:
        folder, name = os.path.split(path)
        return real(folder), name

    used = {file(str(row.path)) for row in listing.rows}
    rest = [i for i, path in listing.images_in(root) if file(path) not in used]
    listing.pass_over(f"images that {printable(table.name)} does not list", *rest)
    listing.passed_over[NOT_IMAGES].remove(printable(table.name))
    if not listing.passed_over[NOT_IMAGES]:
        del listing.passed_over[NOT_IMAGES]


def _folders(root: Path) -> list[Path]:
    entries = root.iterdir() if root.is_dir() else ()
    folders = [path.name for path in entries if path.is_dir()]
    return [root / name for name in sorted(folders) if not is_system_folder(name)]


def _from_folders(root: Path) -> Listing:
    listing, names = Listing(), {}
    for folder in _folders(root):
        if not (label := clean(folder.name)):
            raise InputError(f"a folder in {root} has a blank name: {ascii(folder.name)}")
        names.setdefault(label, []).append(folder.name)
        if not listing.add_folder(root, folder, label):
            listing.pass_over(EMPTY, Folder(folder.name, 0))
    for label, spellings in names.items():
        if len(spellings) > 1:
            written = listed(map(ascii, spellings))
            listing.notes.append(f"{quoted(label)}: one class from the folders {written}")
    used = {folder for spellings in names.values() for folder in spellings}
    used |= (tables := {t.name for t in _tables(root) if has_columns(t, COLUMNS)})
    listing.pass_over(BESIDE, *sorted(tables))
    listing.pass_over_rest(root, used, OUTSIDE)
    return listing


def _from_csv(table: Path, group_column: str | None) -> Listing:
    listing = Listing()
    column = group_column or GROUP
    rows = table_rows(table, COLUMNS, listing.notes, optional=(column,))
    header = rows[0][1] if rows else {}
    if group_column and header and column not in header:
        raise InputError(
            f"--group-column {group_column}: {table} has the columns {','.join(header)}"
        )
    if unused := [
        printable(name) + " (only by --support)" * (name.casefold() == SUPPORT)
        for name in header
        if name and name not in (*COLUMNS, column)
    ]:
        listing.notes.append(f"further columns of {table.name} are not used: {listed(unused)}")
    paths = table_paths(table, rows)
    groups = {i: clean(row.get(column, "")) for (i, _), (_, row) in zip(paths, rows)}
    groups = without_missing(table, groups, listing.notes)
    listing.rows = [
        Row(i, path, clean(row["label"]), groups.get(i)) for (i, path), (_, row) in zip(paths, rows)
    ]
    return listing
