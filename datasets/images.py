"""A set of labelled images on disk: ids, paths, classes; reading, checking and identifying it."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from tqdm import tqdm

from common.errors import InputError, is_text, listed, reason
from common.files import read_array

# What a file may be, whatever its name: not a program for another one, as PostScript is.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff"}
# What Pillow warns of (a large image, an odd tag) is read all the same, or is an error in the end.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


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
    """What in `folder` (if `deep`, in the folders in it, too, links to folders included) is an
    image by its name's end, sorted; hidden files, and those in hidden folders, are none.

    Raises InputError for names that are not text, which no file of ours could keep, and for a link
    to a folder that is read already.
    """
    found: list[str] = []  # strings: with a million of them, paths would take minutes
    been: dict[str, str] = {}
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=deep):
        if (first := been.setdefault(os.path.realpath(here), here)) != here:
            raise InputError(f"{here} and {first} are the same folder, by a link; remove one")
        for name in (*files, *folders):
            if os.path.splitext(name)[1].lower() in EXTENSIONS and name[0] != ".":
                found.append(os.path.join(here, name))
        folders[:] = [name for name in folders if name[0] != "."] if deep else []
    if odd := [ascii(os.path.basename(name)) for name in found if not is_text(name)]:
        raise InputError(f"file names in {folder} that are not UTF-8; rename: {listed(odd)}")
    return [Path(name) for name in sorted(found)]


def _raise(error: OSError) -> None:
    raise error


def unlabelled(folder: Path) -> ImageSet:
    """All images in `folder` and the folders in it, of a single class that means nothing; an
    image's id is its path in `folder`. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"the folder does not exist: {folder}")
    rows = [(str(p.relative_to(folder)), p, "?") for p in image_files(folder, deep=True)]
    if not rows:
        raise InputError(f"no images in {folder}; looked for {' '.join(sorted(EXTENSIONS))}")
    return image_set(folder.resolve().name, ("?",), rows)


def require_fingerprint(value: object) -> None:
    """Raise ValueError if `value`, from a file, is not what `ImageSet.fingerprint` gives."""
    counts = value.get("counts") if isinstance(value, dict) else None
    if (
        not isinstance(counts, dict)
        or not all(type(count) is int and count >= 0 for count in counts.values())
        or not all(isinstance(value.get(name), str) for name in ("dataset", "sha256"))
    ):
        raise ValueError("it does not say of which images it is")


def describe(fingerprint: dict) -> str:
    """A fingerprint in words, for messages that name both sides of a mismatch."""
    counts = ", ".join(f"{name} {count}" for name, count in fingerprint["counts"].items())
    return f"{fingerprint['dataset']} ({counts}; ids {fingerprint['sha256'][:8]})"


def require_same(there: dict, here: dict, what: str) -> None:
    """Raise InputError, in which `what` begins the sentence, if two fingerprints differ."""
    if there != here:
        raise InputError(f"{what} {describe(there)}, but the data folder holds {describe(here)}")


_one_at_a_time = threading.Lock()


def _array(file: Path, array: str) -> np.ndarray:
    with _one_at_a_time:  # or several threads would each load it
        loaded = _load(file, array)
    if isinstance(loaded, Exception):
        raise loaded
    return loaded


@functools.lru_cache(maxsize=3)  # training, validation and test part of a file
def _load(file: Path, array: str) -> np.ndarray | Exception:
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(file) as arrays:
            return read_array(arrays, array)
    except Exception as error:  # kept as well: each of its images would take as long again
        return error


def _open(path: Path | ArrayImage) -> Image.Image:
    if isinstance(path, ArrayImage):
        return Image.fromarray(_array(path.file, path.array)[path.row])
    if os.path.exists(path) and not os.path.isfile(path):  # one waits for ever for a named pipe
        raise ValueError("not a file")
    image = Image.open(path, formats=FORMATS)
    if image.format == "PNG":  # which has checksums, that Pillow looks at nowhere else
        image.verify()
        image = Image.open(path, formats=FORMATS)
    return image


ORIENTATION = 0x0112  # EXIF's tag, and what puts an image with each of its values upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path | ArrayImage, cheaply: bool = False) -> Image.Image:
    """The image as RGB, upright as EXIF says; `cheaply`: maybe in an eighth of its size.

    Raises InputError naming the file if it cannot be decoded, or has more than 8 bits a channel:
    which of them matter is not for us to guess.
    """
    try:
        with _open(path) as image:
            _check(image)
            if cheaply:  # every byte of a JPEG is still read, but with much less work
                image.draft("RGB", (image.width // 8 or 1, image.height // 8 or 1))
            image.load()  # which turns a TIFF, and that alone
            turn = None
            if image.format != "TIFF":
                with contextlib.suppress(Exception):  # a broken tag, which viewers pass over
                    turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
            rgb = image.convert("RGB")
        return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:  # broken bytes lead decoders to errors of every kind
        why = "not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise InputError(f"{path}: {why}") from error


def _check(image: Image.Image) -> None:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    # Of several channels Pillow would read the upper 8 of 16 bits.
    if image.mode[0] in "IF" or re.search(r";16[BLN]", str(getattr(image, "tile", ""))):
        raise ValueError("it has more than 8 bits a channel; convert it first")


def unreadable(*sets: ImageSet) -> dict[Path | ArrayImage, str]:
    """What `read_image` says of each image of `sets` that it refuses; all are decoded, cheaply."""

    def complaint(path: Path | ArrayImage) -> str | None:
        try:
            read_image(path, cheaply=True)
        except InputError as error:
            return str(error)
        return None

    paths = [path for images in sets for path in images.paths]
    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter's lock while decoding
        found = pool.map(complaint, paths)
        progress = tqdm(
            found, desc="checking images", total=len(paths), unit="img", delay=2, leave=False,
            disable=None,
        )  # fmt: skip
        return {path: said for path, said in zip(paths, progress) if said}


def check_readable(*sets: ImageSet) -> None:
    """Raise InputError with all images of `sets` that cannot be decoded."""
    if bad := unreadable(*sets):
        raise cannot_be_read(bad.values(), sum(map(len, sets)))


def without_unreadable(images: ImageSet) -> ImageSet:
    """`images` but for those that cannot be decoded, of which a note says. Raises InputError if
    none is left."""
    bad = unreadable(images)
    if bad and len(bad) == len(images):
        raise cannot_be_read(bad.values(), len(images))
    if bad:
        left_out = f"{len(bad)} of {len(images)} images of {', '.join(images.classes)}"
        print(
            f"note: left out, as they cannot be read, are {left_out}: {listed(bad.values(), 100)}"
        )
    return images.take(i for i, path in zip(images.ids, images.paths) if path not in bad)


def cannot_be_read(complaints: Collection[str], among: int) -> InputError:
    """The error that passes on what `read_image` said of all images that it refused."""
    return InputError(
        f"{len(complaints)} of {among} images cannot be read; repair, convert or remove them, or "
        f"leave them out by --skip-unreadable: {listed(complaints, limit=100)}"
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
