"""User-provided images: one folder per class, or a CSV file of paths and labels."""

from pathlib import Path

from common.errors import InputError, listed
from common.names import clean, quoted

from .listing import OUTSIDE, Folder, Listing, Row, is_system_folder
from .tables import table_paths, table_rows

NAME = None  # taken from the folder or file name
BASE_CLASSES = RARE_CLASSES = None  # given by the user
EMPTY = "class folders without images"
TABLES = (".csv", ".tsv", ".txt")
COLUMNS = ("path", "label")
GROUP = "group"  # an optional column: the patient or lesion
LAYOUT = "one folder per class, or a CSV file with the columns path and label"


def recognises(root: Path) -> bool:
    """Return whether `root` is a CSV file or has subfolders."""
    return is_table(root) or any(_folders(root))


def is_table(path: Path) -> bool:
    """Return whether a path has the extension of a CSV file."""
    return path.suffix.lower() in TABLES


def find(root: Path, group_column: str | None = None) -> Listing:
    """Return every image, with its group where the CSV file has a column `group`.

    The id is the path relative to the folder `root`, or as written in the CSV file, where paths
    are absolute or relative to the file's folder. `group_column` is another name of that column,
    which must then exist. Raises InputError for a folder without images in
    class folders; for a CSV file as `table_paths` does.
    """
    return _from_csv(root, group_column) if root.is_file() else _from_folders(root)


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
    if not listing.rows:
        raise InputError(f"no images in the subfolders of {root}; expected {LAYOUT}")
    for label, spellings in names.items():
        if len(spellings) > 1:
            written = listed(map(ascii, spellings))
            listing.notes.append(f"{quoted(label)}: one class from the folders {written}")
    folders = {folder for spellings in names.values() for folder in spellings}
    listing.pass_over_rest(root, folders.__contains__, OUTSIDE)
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
    paths = table_paths(table, rows)
    listing.rows = [
        Row(i, path, clean(row["label"]), clean(row.get(column, "")) or None)
        for (i, path), (_, row) in zip(paths, rows)
    ]
    return listing
