"""Cache of decoded images: one memory-mapped file, shared by epochs, runs and processes."""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import atomic_write, folder_lock, private_folder, shortened

from .content import stamp
from .images import ImageSet, read_image, unreadable_error
from .listing import ArrayImage, Location
from .threads import in_threads

FORMAT = 2  # version of the pixels; since 2, EXIF orientation is applied


def default_folder() -> Path:
    """Return the folder in the user's cache directory (XDG), for a user without a home in the
    system's temporary folder."""
    name = "rare-disease-images"
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / name
    try:
        return Path.home() / ".cache" / name
    except RuntimeError:  # as in containers
        return Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"


DEFAULT = default_folder()


def cached(images: ImageSet, size: int, folder: Path) -> ImageSet:
    """Return `images` backed by a cache file of S×S pixels in `folder`, created if missing.

    The pixels are those of the evaluation view, `moco.augment.plain_view`. The file name is a hash
    of the images (order, paths, sizes, modification and change times) and S. Only one process
    writes; others wait for it. Raises InputError listing all images that cannot be decoded, and
    OSError if the file cannot be written.
    """
    file = folder / f"{shortened(images.name)}-{size}px-{files_key(images)}.npy"
    if not _is_complete(file, len(images), size):
        with folder_lock(private_folder(folder)) as lock:
            if lock is not None:  # no other process is writing
                for leftover in folder.glob(f".{glob.escape(file.name)}.*.tmp"):
                    leftover.unlink(missing_ok=True)
            if not _is_complete(file, len(images), size):
                _write(file, images, size)
    rows = (ArrayImage(file, "images", row) for row in range(len(images)))
    return dataclasses.replace(images, paths=tuple(rows))


def pixels(images: ImageSet) -> np.ndarray | None:
    """Return the uint8 pixels, M×S×S×3, of `cached` images or a subset, or None if not cached.

    A whole file is memory-mapped; a subset is copied.
    """
    files = {path.file if isinstance(path, ArrayImage) else None for path in images.paths}
    file = files.pop()
    if files or file is None or file.suffix != ".npy":
        return None
    stored = np.load(file, mmap_mode="c")
    rows = [path.row for path in images.paths]
    return stored if rows == list(range(len(stored))) else stored[rows]


def _is_complete(file: Path, images: int, size: int) -> bool:
    try:
        stored = np.load(file, mmap_mode="r")
        whole = os.path.getsize(file) == stored.offset + stored.nbytes
    except Exception:  # missing, truncated or damaged
        return False
    expected = (images, size, size, 3), np.uint8
    return whole and (stored.shape, stored.dtype) == expected and stored.flags.c_contiguous


def files_key(images: ImageSet, change_time: bool = True) -> str:
    """Return a hash of the paths and stamps of `images`, in order.

    Without `change_time`, that of earlier versions, which scores of theirs record.
    """
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    real = functools.cache(os.path.realpath)  # slow: once per folder
    for path in images.paths:
        file, position = (path.file, path[1:]) if isinstance(path, ArrayImage) else (path, ())
        folder, name = os.path.split(file)
        key = (os.path.join(real(folder), name), *position)
        with contextlib.suppress(OSError):  # missing: reported with the unreadable images
            key += tuple(stamp(file)[: 3 if change_time else 2])
        digest.update(f"{key}\n".encode())
    return digest.hexdigest()[:16]


def _write(file: Path, images: ImageSet, size: int) -> None:
    def decode(path: Location) -> bytes | str:
        try:
            return read_image(path).resize((size, size), Image.Resampling.BILINEAR).tobytes()
        except InputError as error:
            return str(error)

    errors: list[str] = []
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), size, size, 3)}
    with atomic_write(file) as out:
        np.lib.format.write_array_header_1_0(out, header)
        for content in in_threads(decode, images.paths, "decoding images"):
            if isinstance(content, str):
                errors.append(content)
            else:
                out.write(content)
        if errors:
            raise unreadable_error(errors, len(images))
