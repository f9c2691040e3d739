"""A set of labelled images on disk: ids, paths, classes; reading, checking and identifying it."""

import functools
import hashlib
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from .files import InputError, listed

EXTENSIONS = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff"}


class ArrayImage(NamedTuple):
    """Where an image is that has no file of its own: a row of an array in an .npz file, or of the
    only one in an .npy file."""

    file: Path
    array: str
    row: int

    def __str__(self) -> str:
        return f"{self.array}[{self.row}] of {self.file}"


@dataclass(frozen=True)
class ImageSet:
    """Images of `classes`; `labels[i]`, an index into `classes`, is the truth of `ids[i]`."""

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    paths: tuple[Path | ArrayImage, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self) -> dict[str, int]:
        """How many images each class has, in the order of `classes`."""
        return {name: self.labels.count(label) for label, name in enumerate(self.classes)}

    def fingerprint(self) -> dict:
        """What tells this set from another: class counts, and a hash of class and id of each
        image that does not depend on their order."""
        rows = sorted(f"{self.classes[label]}\t{i}" for i, label in zip(self.ids, self.labels))
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return {"dataset": self.name, "counts": self.counts(), "sha256": digest}

    def take(self, ids: Iterable[str], classes: Iterable[str] | None = None) -> "ImageSet":
        """The images called `ids`, in that order, labelled as indices into `classes`.

        Raises InputError for an id that is not here.
        """
        classes = tuple(classes or self.classes)
        row_of = {name: row for row, name in enumerate(self.ids)}
        ids = tuple(ids)
        missing = [name for name in ids if name not in row_of]
        if missing:
            raise InputError(f"not among the {self.name} images given: {listed(missing)}")
        rows = [row_of[name] for name in ids]
        return ImageSet(
            name=self.name,
            classes=classes,
            ids=ids,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(classes.index(self.classes[self.labels[row]]) for row in rows),
        )


def image_set(
    name: str, classes: tuple[str, ...], rows: Iterable[tuple[str, Path | ArrayImage, str]]
) -> ImageSet:
    """The ImageSet of those `rows` (id, path, class name) whose class is one of `classes`.

    Rows come out by class, then by id, whatever order they came in.
    """
    rows = sorted(
        ((classes.index(label), i, path) for i, path, label in rows if label in classes),
        key=lambda row: row[:2],
    )
    return ImageSet(
        name=name,
        classes=classes,
        ids=tuple(i for _, i, _ in rows),
        paths=tuple(path for _, _, path in rows),
        labels=tuple(label for label, _, _ in rows),
    )


def image_files(folder: Path, deep: bool = False) -> list[Path]:
    """What in `folder` (if `deep`, in the folders in it, too) is an image by its name's end,
    sorted; hidden files, and those in hidden folders, are none.

    Raises InputError for names that are not text, which no file of ours could keep.
    """
    found: list[str] = []  # strings: with a million of them, paths would take minutes
    for here, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name[0] != "."] if deep else []
        for name in (*files, *folders):
            if os.path.splitext(name)[1].lower() in EXTENSIONS and name[0] != ".":
                found.append(os.path.join(here, name))
    if odd := [ascii(os.path.basename(name)) for name in found if not _is_text(name)]:
        raise InputError(f"file names in {folder} that are not UTF-8; rename: {listed(odd)}")
    return [Path(name) for name in sorted(found)]


def _raise(error: OSError) -> None:
    raise error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def unlabelled(folder: Path) -> ImageSet:
    """All images in `folder` and the folders in it, of a single class that means nothing; an
    image's id is its path in `folder`. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"the folder does not exist: {folder}")
    rows = [(str(p.relative_to(folder)), p, "?") for p in image_files(folder, deep=True)]
    if not rows:
        raise InputError(f"no images in {folder}; looked for {' '.join(sorted(EXTENSIONS))}")
    return image_set(folder.resolve().name, ("?",), rows)


def describe(fingerprint: dict) -> str:
    """A fingerprint in words, for messages that name both sides of a mismatch."""
    counts = ", ".join(f"{name} {count}" for name, count in fingerprint["counts"].items())
    return f"{fingerprint['dataset']} ({counts}; ids {fingerprint['sha256'][:8]})"


_one_at_a_time = threading.Lock()


def _array(file: Path, array: str) -> np.ndarray:
    with _one_at_a_time:  # or several threads would each load it
        return _load(file, array)


@functools.lru_cache(maxsize=3)  # training, validation and test part of a file
def _load(file: Path, array: str) -> np.ndarray:
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    with np.load(file, allow_pickle=False) as arrays:
        return arrays[array]


def _open(path: Path | ArrayImage) -> Image.Image:
    if isinstance(path, ArrayImage):
        return Image.fromarray(_array(path.file, path.array)[path.row])
    return Image.open(path)


UNREADABLE = (
    OSError, EOFError, IndexError, SyntaxError, TypeError, ValueError,
    Image.DecompressionBombError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_image(path: Path | ArrayImage) -> Image.Image:
    """The image as RGB. Raises InputError naming the file if it cannot be decoded, or has more
    than 8 bits a channel: which of them matter is not for us to guess."""
    try:
        with _open(path) as image:
            _require_8_bits(image)
            return image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot read the image {path}: {error}") from error


def _require_8_bits(image: Image.Image) -> None:
    if image.mode[0] in "IF":
        raise ValueError("it has more than 8 bits a channel; convert it first")


def _unreadable(path: Path | ArrayImage) -> Path | ArrayImage | None:
    try:
        with _open(path) as image:
            _require_8_bits(image)
            # Every byte of a JPEG is still read, but an eighth of the size is much less work.
            image.draft("RGB", (image.width // 8 or 1, image.height // 8 or 1))
            image.load()
    except UNREADABLE:
        return path
    return None


def check_readable(*sets: ImageSet) -> None:
    """Decode every image of `sets` once, cheaply. Raises InputError with the path of all that
    fail."""
    paths = [path for images in sets for path in images.paths]
    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter's lock while decoding
        found = pool.map(_unreadable, paths)
        progress = tqdm(
            found, desc="checking images", total=len(paths), unit="img", delay=2, leave=False
        )
        bad = [path for path in progress if path]
    if bad:
        raise cannot_be_decoded(bad, len(paths))


def cannot_be_decoded(bad: Sequence[Path | ArrayImage], among: int) -> InputError:
    """The error that names all images that are `bad`."""
    return InputError(
        f"{len(bad)} of {among} images cannot be decoded, or have more than 8 bits a channel; "
        "repair, convert or remove: " + listed(bad, limit=100)
    )


class TransformedImages(Dataset):
    """Row i: `transform` of image i, the one view that evaluation needs."""

    def __init__(self, images: ImageSet, transform: Callable):
        self.paths = images.paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        return self.transform(read_image(self.paths[row]))
