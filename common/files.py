"""Safe reading, atomic writing and locking of files."""

import contextlib
import csv
import errno
import glob
import io
import json
import os
import secrets
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError, listed

STALE = 3600  # seconds without a change after which a temporary file is abandoned


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return the array `name` of an .npz file, verifying its checksum and running no code from it.

    Raises errors of any type if the file is damaged.
    """
    with archive.open(f"{name}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # reading to the end verifies the checksum
            raise ValueError(f"trailing bytes in {name}")
    return array


def array_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Return the shape of the array `name` of an .npz file, reading its header only.

    Raises errors of any type if the file is damaged.
    """
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        return read(member)[0]


def parse_json(text: str | bytes, newest: int) -> dict:
    """Parse a JSON object with "format" `newest` or older; raises ValueError otherwise."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    json.dumps(values, ensure_ascii=False).encode()  # lone surrogates cannot be printed
    version = values.get("format", newest)
    if not isinstance(version, int) or version > newest:
        raise ValueError(f"unsupported format {version}; this version reads {newest} and older")
    return values


def require_writable(folder: Path) -> None:
    """Raise InputError if files cannot be written to `folder`, which need not exist yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write to {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write to {folder}")


def refuse_to_overwrite(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise InputError if any of `paths` exists, unless `overwrite`, or is not writable."""
    paths = list(paths)
    for folder in {path.parent for path in paths}:
        require_writable(folder)
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise InputError(
            f"{listed(existing)} would be overwritten; choose another folder or add --overwrite"
        )


def private_folder(folder: Path) -> Path:
    """Return `folder`, made if it is missing: then it, not its parents, is for this user alone, as
    images and the names of files may be of patients."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def shortened(name: str, length: int = 100) -> str:
    """Return at most the first `length` bytes of `name`, as part of the name of a file."""
    return name.encode()[:length].decode(errors="ignore")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is synced and renamed to `path` if the block succeeds, and removed
    otherwise. Keeps the permissions of `path`; removes abandoned temporary files of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{shortened(path.name, 200)}"  # with the rest below, at most the 255 bytes of a name
    for leftover in path.parent.glob(f"{glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may remove it first
            if time.time() - leftover.stat().st_mtime > STALE:
                leftover.unlink()
    # Random, as processes on several machines or containers may share a process id.
    temporary = path.with_name(f"{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # who may read it, if somebody has restricted that
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_utf8(path: Path, text: str) -> None:
    """Write `text` in UTF-8 by `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as the text of a CSV file; None is an empty value."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@contextlib.contextmanager
def alone_in(file: Path) -> Iterator[bool]:
    """Lock `file`, an empty one made for it and removed again, within the block; provide False, at
    once, if another process has locked it. Child processes do not inherit the lock.

    True, without locking, where the system or file system does not support it, or the file may not
    be written.
    """
    if os.name != "posix":
        yield True
        return
    import fcntl

    try:
        opened = open(file, "wb")
    except PermissionError:  # another user's, left by a kill
        yield True
        return
    with opened:
        alone = True
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            alone = error.errno not in (errno.EACCES, errno.EAGAIN)
        try:
            yield alone
        finally:
            if alone:
                with contextlib.suppress(OSError):
                    Path(file).unlink()


@contextlib.contextmanager
def folder_lock(folder: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[int | None]:
    """Hold an exclusive lock on `folder` within the block; waits for other processes, unless it is
    `stopped`: then there is no lock.

    Provides the lock's file descriptor, which a child process can inherit to keep the lock; None,
    without locking, where the system or file system (many network ones) does not support it.
    """
    if os.name != "posix":
        yield None
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = False
        while not locked and not stopped():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:  # not supported
                break
        yield descriptor if locked else None
    finally:
        os.close(descriptor)
