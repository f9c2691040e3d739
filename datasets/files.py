"""Reading and writing for people: one error class, and writes that never leave half a file."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


class InputError(ValueError):
    """Something the user gave cannot be used; the message is the one line to show them."""

    def __str__(self) -> str:
        # A DataLoader's worker hands an error on with its traceback as the message.
        return super().__str__().rstrip().rpartition("InputError: ")[2]


def listed(items: Iterable[object], limit: int = 10) -> str:
    """`a, b, c and 12 more`."""
    items = [str(item) for item in items]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


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
    """A file to write to that takes the name `path`, complete and on disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    locks, nobody waits."""
    if os.name != "posix":
        yield None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)
