"""Checkpoints of any model: written whole or not at all, the one before kept, checksums tested."""

import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from common.errors import InputError, refusing
from common.files import atomic_write

CHECKPOINT = "checkpoint.pth.tar"
PREVIOUS = "checkpoint.previous.pth.tar"


def save(folder: Path, contents: dict) -> None:
    """Write `contents` to `folder`. The checkpoint before is kept as PREVIOUS: at every instant one
    of the two is whole."""
    remove_unfinished(folder)
    with atomic_write(folder / CHECKPOINT) as file:
        torch_save(contents, file)
        file.flush()
        os.fsync(file.fileno())  # before: until it has its name, there is but one other
        _keep_previous(folder)


def torch_save(contents: dict, file: BinaryIO) -> None:
    """As torch.save; a full disk is an OSError."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:  # what torch makes of a disk that is full
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _keep_previous(folder: Path) -> None:
    """Give the checkpoint that is about to be replaced its second name."""
    second = folder / f".{PREVIOUS}.tmp"
    if not _is_whole(folder / CHECKPOINT):  # none, or broken: the one before is better
        return
    try:
        os.link(folder / CHECKPOINT, second)
    except OSError:  # a disk without links
        shutil.copyfile(folder / CHECKPOINT, second)
    os.replace(second, folder / PREVIOUS)


def _is_whole(path: Path) -> bool:
    """Is this a file that torch.save wrote since its version 1.6, its checksums right?"""
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except Exception:  # broken headers lead to errors of every kind
        return False


def remove_unfinished(folder: Path, *beside: str) -> None:
    """Remove what a run that was killed while it wrote has left behind: of a checkpoint, and of the
    files `beside` it."""
    for name in (CHECKPOINT, PREVIOUS, *beside):
        for path in folder.glob(f".{name}*.tmp"):
            path.unlink(missing_ok=True)


def load(path: str | Path, check: Callable[[object, Path], dict]) -> dict:
    """The checkpoint at `path`, a file or a run's folder, on the CPU, as `check(contents, file)`
    returns it. Where a folder's latest is missing or broken, the one before it, with a note.

    Raises InputError if there is none, it is unreadable, or `check` raises an error. Runs no code
    from it.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_file(path, check)
    try:
        return _load_file(path / CHECKPOINT, check)
    except InputError as error:
        if _is_whole(path / CHECKPOINT) or not (path / PREVIOUS).is_file():
            raise
        checkpoint = _load_file(path / PREVIOUS, check)
        print(f"note: {error}; the one before it is taken, {path / PREVIOUS}")
        return checkpoint


def _load_file(path: Path, check: Callable[[object, Path], dict]) -> dict:
    if not path.is_file():
        raise InputError(f"no checkpoint here: {path}")
    contents = read(path)
    with refusing(f"{path} is not a sound checkpoint"):
        return check(contents, path)


def read(path: Path) -> object:
    """What torch.save wrote to `path`, without running any code from it."""
    with refusing(f"{path} cannot be read as a checkpoint"):
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip and not _is_whole(path):  # torch.load passes over checksums
            raise ValueError("it is cut off, or its bytes have changed since it was written")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: they are refused or not
            return torch.load(path, map_location="cpu", weights_only=True)
