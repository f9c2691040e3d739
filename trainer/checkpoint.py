"""Checkpoints of any model: atomic writes, a previous copy, verified checksums."""

import os
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.errors import InputError, pass_on, refusing
from common.files import atomic_write

CHECKPOINT = "checkpoint.pth.tar"
PREVIOUS = "checkpoint.previous.pth.tar"
PLAIN = (str, int, float, bool, type(None), bytes)


def save(folder: Path, contents: dict) -> None:
    """Write `contents` to `folder`, keeping the checkpoint before as PREVIOUS. At any time at least
    one of the two is complete. Raises TypeError if they could not be read again."""
    require_readable(contents)
    remove_unfinished(folder)
    with atomic_write(folder / CHECKPOINT) as file:
        torch_save(contents, file)
        file.flush()
        os.fsync(file.fileno())  # complete on disk before PREVIOUS is replaced
        _keep_previous(folder)


def stamp(folder: Path) -> tuple[int, int] | None:
    """Return time and size of a run's latest checkpoint, by which a newer one is known; None if
    there is none."""
    file = folder / CHECKPOINT
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None


def torch_save(contents: dict, file: BinaryIO) -> None:
    """Call torch.save, raising OSError if the disk is full."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:  # torch's error for a full disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def require_readable(value: Any, where: str = "the checkpoint") -> None:
    """Raise TypeError if `torch.load(weights_only=True)` would refuse a part of `value`."""
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            require_readable(key, where)
            require_readable(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for part in value:
            require_readable(part, where)
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN:
        raise TypeError(f"{where} holds a {type(value).__name__}, which cannot be read again")


def _keep_previous(folder: Path) -> None:
    """Keep the checkpoint that is about to be replaced as PREVIOUS."""
    temporary = folder / f".{PREVIOUS}.tmp"
    if not _is_intact(folder / CHECKPOINT):  # missing or damaged: PREVIOUS is better
        return
    try:
        os.link(folder / CHECKPOINT, temporary)
    except OSError:  # file system without hard links
        shutil.copyfile(folder / CHECKPOINT, temporary)
    os.replace(temporary, folder / PREVIOUS)


def _is_intact(path: Path) -> bool:
    """Return whether this is a zip file, as of torch.save since 1.6, with valid checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception as error:  # damaged headers raise errors of every kind
        pass_on(error, f"{path}")
        return False


def remove_unfinished(folder: Path, *beside: str) -> None:
    """Remove the temporary files that a killed run left, of checkpoints and of the files
    `beside` them."""
    for name in (CHECKPOINT, PREVIOUS, *beside):
        for path in folder.glob(f".{name}*.tmp"):
            path.unlink(missing_ok=True)


def load(path: str | Path, check: Callable[[object, Path], dict]) -> dict:
    """Load the checkpoint at `path`, a file or a run's folder, onto the CPU, and return
    `check(contents, file)`. If a folder's latest is missing or damaged, print a note and load the
    previous one.

    Runs no code from the file. Raises InputError if the checkpoint is missing or unreadable, or if
    `check` raises an error.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_file(path, check)
    try:
        return _load_file(path / CHECKPOINT, check)
    except InputError as error:
        if (file := newest(path)) == path / CHECKPOINT:
            raise
        checkpoint = _load_file(file, check)
        print(f"note: {error}; falling back to the previous checkpoint, {file}")
        return checkpoint


def newest(folder: Path) -> Path:
    """Return a run's latest checkpoint, or the previous one if it is missing or damaged."""
    latest, previous = folder / CHECKPOINT, folder / PREVIOUS
    return previous if previous.is_file() and not _is_intact(latest) else latest


def _load_file(path: Path, check: Callable[[object, Path], dict]) -> dict:
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    contents = read(path)
    with refusing(f"{path} is not a valid checkpoint"):
        return check(contents, path)


def read(path: Path) -> object:
    """Return what torch.save wrote to `path`, without running any code from it."""
    with refusing(f"{path} cannot be read as a checkpoint"):
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip and not _is_intact(path):  # torch.load does not verify checksums
            raise ValueError("truncated or corrupted")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, which weights_only restricts
            return torch.load(path, map_location="cpu", weights_only=True)
