"""Tables in CSV files that come from people."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError, listed, refusing


def table_rows(table: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file in UTF-8 that has `columns`, in any order, maybe with others: each as
    its line's number and the values by column, without spaces around them.

    Raises InputError if it is not such a file; naming the line, where one lacks one of the
    `columns`, or has more or fewer values than the header.
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
        for values in filter(None, reader):  # an empty line is no row
            row = dict(zip(header, map(str.strip, values)))
            if len(values) != len(header) or not all(row[name] for name in columns):
                raise InputError(
                    f"{table}, line {reader.line_num}: expected {len(header)} values, of "
                    f"{','.join(columns)} none empty"
                )
            if "\0" in "".join(values):
                raise InputError(f"{table}, line {reader.line_num}: a character is NUL")
            found.append((reader.line_num, row))
    return found


def refuse_twice(table: Path, names: Iterable[str]) -> None:
    """Raise InputError if `names`, which `table` lists, has one more than once."""
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(f"{table} lists more than once: {listed(twice)}")
