"""Reading and writing for people: one error class, and writes that never leave half a file."""

import contextlib
import csv
import glob
import json
import os
import secrets
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

STALE = 3600  # seconds without a change after which nobody is still writing a file


class InputError(ValueError):
    """Something the user gave cannot be used; the message is the one line to show them."""

    def __str__(self) -> str:
        # A DataLoader's worker hands an error on with its traceback as the message. Names of files
        # may hold line breaks.
        message = super().__str__().rstrip().rpartition("InputError: ")[2]
        return " ".join(message.splitlines())


def reason(error: Exception) -> str:
    """What an error of another library says, its first sentence (advice follows, and guesses),
    without the path that we name anyway."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, KeyError):
        text = f"it lacks {text}"
    return (text.strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise whatever goes wrong in here, where a file is read, as InputError: `what`, and why."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # broken bytes lead libraries to errors of every kind
        raise InputError(f"{what}: {reason(error)}") from error


def is_text(name: str) -> bool:
    """Can it be written as UTF-8? Names of files that are other bytes cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(items: Iterable[object], limit: int = 10) -> str:
    """`a, b, c and 12 more`."""
    items = [str(item) for item in items]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


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


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The array `name` of an .npz file, its checksum verified. Runs no code from it; raises errors
    of every kind if it is broken."""
    with archive.open(f"{name}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # the checksum is looked at where the file ends
            raise ValueError(f"{name} is longer than it says")
    return array


def parse_json(text: str | bytes, newest: int) -> dict:
    """The JSON object `text`, whose "format" is `newest` or older. Raises ValueError otherwise."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    json.dumps(values, ensure_ascii=False).encode()  # no half characters, which nothing could show
    version = values.get("format", newest)
    if not isinstance(version, int) or version > newest:
        raise ValueError(f"it has format {version}; this code reads {newest} and older ones")
    return values


def require_writable(folder: Path) -> None:
    """Raise InputError if files cannot be put into `folder`, which need not exist yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest} is not a folder; nothing can be written to {folder}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write to {folder}")


def refuse_to_overwrite(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise InputError if one of `paths` exists, unless `overwrite`, or could not be written."""
    paths = list(paths)
    for folder in {path.parent for path in paths}:
        require_writable(folder)
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise InputError(
            f"{listed(existing)} would be overwritten; choose another folder or add --overwrite"
        )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path`, complete and on disk, or not at all. Removes
    what one that was killed left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another one may be faster
            if time.time() - other.stat().st_mtime > STALE:
                other.unlink()
    # Processes of several machines, or containers, may have the same number.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int | None]:
    """One process at a time: who comes while another is in here, waits. Gives the lock's file
    descriptor; a child that inherits it keeps the lock, too. Where the system or the disk has no
    locks (many that are shared have none for folders) nobody waits, and there is none to give."""
    if os.name != "posix":
        yield None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        locked = False
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        yield handle if locked else None
    finally:
        os.close(handle)
