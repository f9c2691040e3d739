"""Reading and checking of user-provided CSV tables."""

import codecs
import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError, listed, refusing
from common.names import clean

MARKS = {  # the first match wins
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def table_rows(
    table: Path,
    columns: Sequence[str],
    notes: list[str] | None = None,
    optional: Sequence[str] = (),
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with at least `columns`, in any order and capitals, and perhaps `optional`.

    It may be separated by commas, semicolons or tabs, and be in UTF-8, in UTF-16 or -32 with a
    byte-order mark, or else in Windows-1252, which is added to `notes`. Returns (line number,
    values by column) per row, with surrounding spaces stripped; other columns keep their names.
    Raises InputError if the file or its columns are invalid or one of them is there twice, and,
    with the line number, for an empty value in `columns` or a row whose length differs from the
    header's.
    """
    found = []
    with refusing(f"{table} is not a CSV file"):
        text = _text(table, notes)
        delimiter, header = _header(table, text, columns, optional)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        next(reader)
        for values in filter(None, reader):  # skip empty lines
            row = dict(zip(header, map(str.strip, values)))
            if len(values) != len(header) or not all(clean(row[name]) for name in columns):
                raise InputError(
                    f"{table}, line {reader.line_num}: expected {len(header)} values, with "
                    f"{','.join(columns)} not empty"
                )
            if "\0" in "".join(values):
                raise InputError(f"{table}, line {reader.line_num}: contains a NUL character")
            found.append((reader.line_num, row))
    return found


def has_columns(table: Path, columns: Sequence[str]) -> bool:
    """Return whether a file is a CSV file with these columns."""
    try:
        with refusing(str(table)):
            return bool(_header(table, _text(table, None), columns, ()))
    except InputError:
        return False


def _text(table: Path, notes: list[str] | None) -> str:
    content = table.read_bytes()
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    if "\0" in text or not all(c.isascii() or _is_written(c) for c in text):
        raise ValueError("neither UTF-8 nor Windows-1252; save it as UTF-8")
    if notes is not None:
        notes.append(f"{table.name} is not UTF-8; read as Windows-1252")
    return text


def _is_written(character: str) -> bool:
    """Return whether a character occurs in text, as opposed to binary data."""
    return character.isalnum() or character in "°µ±–—‘’“”„…€§ºª"


def _header(
    table: Path, text: str, columns: Sequence[str], optional: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the delimiter with which the first line has all `columns`, and its columns."""
    headers = {}
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [_column(name, (*columns, *optional)) for name in next(reader, [])]
        headers[delimiter] = names
        if sorted(name for name in names if name in columns) == sorted(columns):
            require_unique(f"the header of {table}", (n for n in names if n in optional))
            return delimiter, names
    hint = "; save it as UTF-8" if "\0" in text[:200] else ""  # UTF-16 without its mark
    raise InputError(
        f"{table} has the columns {','.join(headers[','])}; expected {','.join(columns)}, each "
        f"once, separated by {' or '.join(DELIMITERS.values())}{hint}"
    )


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
    found = [_existing(table.parent, row["path"]) for _, row in rows]
    if not found:
        raise InputError(f"{table} lists no images")
    require_unique(table, (os.path.normpath(path) for _, path in found))
    if missing := [path for _, path in found if not os.path.isfile(path)]:
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing: "
            + listed(missing)
        )
    return found


def _existing(folder: Path, written: str) -> tuple[str, Path]:
    for name in (written, written.replace("\\", "/")):
        for form in (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))):
            if os.path.isfile(folder / form):
                return name, folder / form
    return written, folder / written


def require_unique(table: Path | str, names: Iterable[str]) -> None:
    """Raise InputError if `names`, a column of `table`, has duplicates."""
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{table} has duplicates: {listed(duplicates)}")
