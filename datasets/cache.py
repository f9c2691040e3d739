"""Images decoded once: their pixels in a file that every epoch, run and process maps to memory."""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import io
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import InputError
from common.files import alone_in, atomic_write

from .images import ArrayImage, ImageSet, cannot_be_read, read_image

FORMAT = 2  # of the pixels: they are upright, as EXIF says
AT_ONCE = 256  # images decoded ahead of what is written


def default_folder() -> Path:
    """Where caches go if nobody says otherwise: the user's own folder for such things."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rare-disease-images"


def cached(images: ImageSet, size: int, folder: Path) -> ImageSet:
    """`images` as S×S pixels in a file in `folder`, which is made if it is not there yet.

    The pixels are the evaluation view's, `moco.augment.plain_view`. A file goes by its images
    (their order, paths, lengths and times of change) and S; who comes while another process makes
    it, waits. Raises InputError with the paths of all images that cannot be decoded, and OSError
    if the file cannot be written.
    """
    file = folder / f"{images.name}-{size}px-{files_key(images)}.npy"
    if not _is_whole(file, len(images), size):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # they may be of patients
        with alone_in(folder) as alone:
            if alone is not None:  # then nobody is writing what lies there
                for left in folder.glob(f".{glob.escape(file.name)}.*.tmp"):
                    left.unlink(missing_ok=True)
            if not _is_whole(file, len(images), size):
                _write(file, images, size)
    rows = (ArrayImage(file, "images", row) for row in range(len(images)))
    return dataclasses.replace(images, paths=tuple(rows))


def pixels(images: ImageSet) -> np.ndarray | None:
    """The M×S×S×3 bytes of images that are `cached`, or that were taken from such: all of a file
    mapped to memory, some of it as a copy. None for other images."""
    files = {path.file if isinstance(path, ArrayImage) else None for path in images.paths}
    file = files.pop()
    if files or file is None or file.suffix != ".npy":
        return None
    stored = np.load(file, mmap_mode="c")
    rows = [path.row for path in images.paths]
    return stored if rows == list(range(len(stored))) else stored[rows]


def _is_whole(file: Path, images: int, size: int) -> bool:
    header = _header(images, size)
    try:
        with open(file, "rb") as there:
            whole = len(header) + images * size * size * 3
            return there.read(len(header)) == header and os.fstat(there.fileno()).st_size == whole
    except OSError:  # not there
        return False


def _header(images: int, size: int) -> bytes:
    out, shape = io.BytesIO(), (images, size, size, 3)
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, about)
    return out.getvalue()


def files_key(images: ImageSet) -> str:
    """A word for the files of `images` in their order: where they are, how long, and of when."""
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    real = functools.cache(os.path.realpath)  # a step for each folder above: once for a folder
    for path in images.paths:
        file, place = (path.file, path[1:]) if isinstance(path, ArrayImage) else (path, ())
        folder, name = os.path.split(file)
        where = (os.path.join(real(folder), name), *place)
        with contextlib.suppress(OSError):  # not there: told with what else cannot be read
            state = os.stat(file)
            where += (state.st_size, state.st_mtime_ns)
        digest.update(f"{where}\n".encode())
    return digest.hexdigest()[:16]


def _write(file: Path, images: ImageSet, size: int) -> None:
    complaints: list[str] = []

    def resized(path: Path | ArrayImage) -> bytes | str:
        try:
            return read_image(path).resize((size, size), Image.Resampling.BILINEAR).tobytes()
        except InputError as error:
            return str(error)

    paths = tqdm(
        images.paths, desc="decoding images", unit="img", delay=2, leave=False, disable=None
    )
    ahead = iter(paths)
    with atomic_write(file) as out, ThreadPoolExecutor() as pool:
        out.write(_header(len(images), size))
        while some := list(itertools.islice(ahead, AT_ONCE)):
            for content in pool.map(resized, some):
                if isinstance(content, str):
                    complaints.append(content)
                else:
                    out.write(content)
        if complaints:
            raise cannot_be_read(complaints, len(images))
