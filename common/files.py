"""Reading and writing for people: writes that never leave half a file."""

import contextlib
import glob
import json
import os
import secrets
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError, listed

STALE = 3600  # seconds without a change after which nobody is still writing a file


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
