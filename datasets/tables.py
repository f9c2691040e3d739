"""Reading and checking of user-provided CSV tables."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError, listed, refusing


def table_rows(table: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a UTF-8 CSV file with at least `columns`, in any order.

    Returns (line number, values by column) per row, with surrounding spaces stripped. Raises
    InputError if the file or its columns are invalid, and, with the line number, for an empty
    value in `columns` or a row whose length differs from the header's.
    """
    found = []
    with (
        refusing(f"{table} is not a CSV file"),
        open(table, newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv.reader(file, strict=True)
        header = list(map(str.strip, next(reader, [])))
        if sorted(name for name in header if name in columns) != sorted(columns):
            raise InputError(
                f"{table} has the columns {','.join(header)}; expected {','.join(columns)}, "
                "each once"
            )
        for values in filter(None, reader):  # skip empty lines
            row = dict(zip(header, map(str.strip, values)))
            if len(values) != len(header) or not all(row[name] for name in columns):
                raise InputError(
                    f"{table}, line {reader.line_num}: expected {len(header)} values, with "
                    f"{','.join(columns)} not empty"
                )
            if "\0" in "".join(values):
                raise InputError(f"{table}, line {reader.line_num}: contains a NUL character")
            found.append((reader.line_num, row))
    return found


def require_unique(table: Path, names: Iterable[str]) -> None:
    """Raise InputError if `names`, a column of `table`, has duplicates."""
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{table} has duplicates: {listed(duplicates)}")
