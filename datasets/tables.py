"""Reading and checking of user-provided CSV tables."""

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from common.errors import InputError, listed, refusing
from common.names import clean, printable, quoted

from .listing import NAMED

MARKS = {  # the first match wins
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MISSING = {"#n/a", "<na>", "n/a", "na", "nan", "none", "null"}  # groups, in any capitals
IDS = ("image", "path")  # columns of ids; the first one there counts
# Excel's first line that names the delimiter; the header tells it as well.
SEPARATOR_LINE = re.compile(r'\A"?sep=.?"?[,;\t]*(?=[\r\n])', re.IGNORECASE)


def table_rows(
    table: Path,
    columns: Sequence[str],
    notes: list[str],
    optional: Sequence[str] = (),
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with at least `columns`, in any order and capitals, and perhaps `optional`.

    It may be separated by commas, semicolons or tabs, and be in UTF-8, in UTF-16 or -32 with a
    byte-order mark, or else in Windows-1252, which is added to `notes`. Returns (line number,
    values by column) per row, with surrounding spaces stripped; other columns keep their names.
    Rows without any value are skipped, and a row that repeats another counts once, as `notes` say.
    Raises InputError if the file or its columns are invalid or one of them is there twice, and,
    with the line number, for an empty value in `columns` or a row whose length differs from the
    header's.
    """
    found: dict[tuple[str, ...], tuple[int, dict[str, str]]] = {}
    repeated = 0
    with refusing(f"{table} is not a CSV file"):
        text = _text(table, notes)
        delimiter, header = _header(table, text, columns, optional)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = _not_empty(reader)
        next(rows)
        for values in rows:
            row = dict(zip(header, map(str.strip, values)))
            if len(values) != len(header) or not all(clean(row[name]) for name in columns):
                raise InputError(
                    f"{table}, line {reader.line_num}: expected {len(header)} values, with "
                    f"{','.join(columns)} not empty"
                )
            if "\0" in "".join(values):
                raise InputError(f"{table}, line {reader.line_num}: contains a NUL character")
            key = tuple(value for name, value in row.items() if name)  # R's row numbers have none
            repeated += key in found
            found.setdefault(key, (reader.line_num, row))
    if repeated:
        notes.append(f"{repeated} rows of {table.name} repeat another row and count once")
    return list(found.values())


def has_columns(table: Path, columns: Sequence[str]) -> bool:
    """Return whether a file is a CSV file with these columns."""
    try:
        with refusing(str(table)):
            return bool(_header(table, _text(table, []), columns, ()))
    except InputError:
        return False


def _text(table: Path, notes: list[str]) -> str:
    content = table.read_bytes()
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return SEPARATOR_LINE.sub("", content.decode(encoding))
    try:
        return SEPARATOR_LINE.sub("", content.decode("utf-8"))
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    if "\0" in text or not all(c.isascii() or _is_written(c) for c in text):
        raise ValueError("neither UTF-8 nor Windows-1252; save it as UTF-8")
    notes.append(f"{table.name} is not UTF-8; read as Windows-1252")
    return SEPARATOR_LINE.sub("", text)


def _is_written(character: str) -> bool:
    """Return whether a character occurs in text, as opposed to binary data."""
    return character.isalnum() or character in "°µ±–—‘’“”„…€§ºª"


def _header(
    table: Path, text: str, columns: Sequence[str], optional: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the delimiter with which the first line has all `columns`, and its columns."""
    headers = []
    for delimiter in DELIMITERS:
        # Not strict: with the wrong delimiter, quotes end within a value.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [_column(name, (*columns, *optional)) for name in next(_not_empty(reader), [])]
        headers.append(names)
        if sorted(name for name in names if name in columns) == sorted(columns):
            require_unique(f"the header of {table}", (n for n in names if n in optional))
            return delimiter, names
    hint = "; save it as UTF-8" if "\0" in text[:200] else ""  # UTF-16 without its mark
    there = ",".join(max(headers, key=len))
    raise InputError(
        f"{table} has the columns {there}; expected {','.join(columns)}, each once, "
        f"separated by {' or '.join(DELIMITERS.values())}{hint}"
    )


def _not_empty(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Return the rows with a value; spreadsheets end in rows of delimiters."""
    return (values for values in rows if any(value.strip() for value in values))


def _column(name: str, columns: Sequence[str]) -> str:
    """Return the one of `columns` that `name` is, whatever its capitals; else `name`."""
    name = clean(name)
    return next((column for column in columns if column.casefold() == name.casefold()), name)


def table_paths(table: Path, rows: Sequence[tuple[int, dict[str, str]]]) -> list[tuple[str, Path]]:
    """Return the ids and paths in the column `path`, absolute or relative to the folder of `table`.

    A path is as written or, if there is no such file, with slashes for backslashes, or with the
    name's accents in the other Unicode form. Raises InputError if there are no rows, for duplicate
    paths and for missing files.
    """
    found = [existing(table.parent, row["path"]) for _, row in rows]
    if not found:
        raise InputError(f"{table} lists no images")
    labels = [clean(row.get("label", "")) for _, row in rows]
    require_unique(table, (os.path.normpath(path) for _, path in found), labels)
    if missing := [path for _, path in found if not os.path.isfile(path)]:
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing: "
            + listed(missing)
        )
    return found


def table_groups(table: Path, column: str, ids: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Return the group in `column` by the id of an image in the column `image`, or `path` as in a
    CSV file of images.

    Adds to `notes` as `table_rows` does, and which ids are none of `ids`. Raises InputError as
    `table_rows` does, and for an id that is listed twice.
    """
    image = next((name for name in IDS if has_columns(table, (name, column))), IDS[0])
    rows = [row for _, row in table_rows(table, (image, column), notes)]
    find = finder(ids)
    names, groups = [find(row[image]) for row in rows], [clean(row[column]) for row in rows]
    require_unique(table, names, groups)
    if unknown := sorted({*names} - {*ids}):
        shown = listed(map(printable, unknown), NAMED)
        notes.append(f"{len(unknown)} ids in {table.name} are no images: {shown}")
    return without_missing(table, dict(zip(names, groups)), notes)


def without_missing(table: Path, groups: dict[str, str], notes: list[str]) -> dict[str, str]:
    """Return `groups`, by image, without those that R and pandas write for a missing value, which
    are added to `notes`."""
    found = [group for group in groups.values() if group.casefold() in MISSING]
    if found:
        names = listed(map(quoted, sorted({*found})))
        notes.append(f"{len(found)} images of {table.name} have the group {names}, read as none")
    return {i: group for i, group in groups.items() if group and group.casefold() not in MISSING}


def finder(ids: Iterable[str]) -> Callable[[str], str]:
    """Return a function that gives, for an id as typed, the one of `ids` that it is but for its
    slashes and Unicode form; the name itself if there is none."""

    def form(name: str) -> str:
        return clean(name.replace("\\", "/"))

    id_of = {i: i for i in ids}
    by_form = {form(i): i for i in id_of}
    return lambda name: id_of.get(name) or by_form.get(form(name), name)


def existing(folder: Path, written: str) -> tuple[str, Path]:
    """Return a path in `folder` as written, with slashes for backslashes or in the other Unicode
    form, whichever exists, and the file."""
    for name in (written, written.replace("\\", "/")):
        for form in (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))):
            if os.path.isfile(folder / form):
                return name, folder / form
    return written, folder / written


def require_unique(
    table: Path | str, names: Iterable[str], labels: Iterable[str] | None = None
) -> None:
    """Raise InputError if `names`, a column of `table`, has duplicates; it shows their `labels`,
    if those differ."""
    names = list(names)
    found: dict[str, dict[str, None]] = {}
    for name, label in zip(names, names if labels is None else labels):
        found.setdefault(name, {})[label] = None
    if differ := [
        f"{n} ({' and '.join(map(quoted, of))})" for n, of in found.items() if len(of) > 1
    ]:
        raise InputError(f"{table} gives one image different labels: {listed(differ)}")
    if len(found) < len(names):
        duplicates = [name for name, count in Counter(names).items() if count > 1]
        raise InputError(f"{table} has duplicates: {listed(duplicates)}")
