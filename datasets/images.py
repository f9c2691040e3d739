"""Sets of labelled images on disk: listing, reading, checking and fingerprinting them."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from common.errors import InputError, listed, pass_on, reason
from common.files import read_array
from common.names import counted, quoted

from .dicom import open_heic, read_dicom
from .listing import DICOM, FORMATS, HEAD, OTHERS, UNKNOWN, ArrayImage, Location, Row, format_of
from .threads import in_threads

ALLOW = "copies of an image now count once; add --allow-duplicates to count each, as before"
# Pillow warns of large images and odd tags, but reads them or raises an error.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class ImageSet:
    """Labelled images; `labels[i]`, an index into `classes`, is the true class of `ids[i]`.

    `copies` maps the id of a copy of an image, in the set or left out, to the id of the first image
    with that content.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    paths: tuple[Location, ...]
    labels: tuple[int, ...]
    copies: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self) -> dict[str, int]:
        """Return the number of images per class, in the order of `classes`."""
        return {name: self.labels.count(label) for label, name in enumerate(self.classes)}

    def rows(self) -> list[Row]:
        """Return id, path and class of each image."""
        labels = (self.classes[label] for label in self.labels)
        return [Row(*row) for row in zip(self.ids, self.paths, labels, strict=True)]

    def fingerprint(self) -> dict:
        """Return name, class counts and an order-independent hash of all classes and ids."""
        rows = sorted(f"{self.classes[label]}\t{i}" for i, label in zip(self.ids, self.labels))
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return {"dataset": self.name, "counts": self.counts(), "sha256": digest}

    def with_copies(self) -> "ImageSet":
        """Return the set with the copies that were left out, in their first image's class, without
        paths: for its fingerprint."""
        label_of = dict(zip(self.ids, self.labels))
        left_out = [
            i for i, first in self.copies.items() if i not in label_of and first in label_of
        ]
        labels = (*self.labels, *(label_of[self.copies[i]] for i in left_out))
        return replace(self, ids=(*self.ids, *left_out), labels=labels, paths=())

    def take(self, ids: Iterable[str], classes: Iterable[str] | None = None) -> "ImageSet":
        """Return the images `ids`, in that order, labelled as indices into `classes`.

        Raises InputError for an unknown id.
        """
        classes = tuple(classes or self.classes)
        row_of = {name: row for row, name in enumerate(self.ids)}
        ids = tuple(ids)
        if missing := [name for name in ids if name not in row_of]:
            copies = f"; {ALLOW}" if any(name in self.copies for name in missing) else ""
            raise InputError(f"not found among the {self.name} images: {listed(missing)}{copies}")
        rows = [row_of[name] for name in ids]
        return replace(
            self,
            classes=classes,
            ids=ids,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(classes.index(self.classes[self.labels[row]]) for row in rows),
        )


def image_set(name: str, classes: tuple[str, ...], rows: Iterable[tuple]) -> ImageSet:
    """Return the ImageSet of the `rows` (id, path, class name, …) whose class is in `classes`.

    Images are sorted by class, then id.
    """
    chosen = sorted(
        ((classes.index(label), i, path) for i, path, label, *_ in rows if label in classes),
        key=lambda row: row[:2],
    )
    labels, ids, paths = zip(*chosen) if chosen else ((), (), ())
    return ImageSet(name, classes, ids, paths, labels)


def require_fingerprint(value: object) -> None:
    """Raise ValueError if `value`, from a file, is not an `ImageSet.fingerprint`."""
    counts = value.get("counts") if isinstance(value, dict) else None
    if (
        not isinstance(counts, dict)
        or not all(type(count) is int and count >= 0 for count in counts.values())
        or not all(isinstance(value.get(name), str) for name in ("dataset", "sha256"))
    ):
        raise ValueError("invalid fingerprint of the image set")


def describe(fingerprint: dict) -> str:
    """Return a readable form of a fingerprint, for messages."""
    counts = counted(fingerprint["counts"])
    return f"{fingerprint['dataset']} ({counts}; ids {fingerprint['sha256'][:8]})"


def same_images(one: dict, other: dict) -> bool:
    """Return whether two fingerprints are of the same images, in a folder of whatever name."""
    return all(one[key] == other[key] for key in ("counts", "sha256"))


def other_images(recorded: dict, images: ImageSet) -> str:
    """Return the end of a message if a fingerprint is not that of `images`: what both are and, if
    they differ in copies alone, what to do. Else ""."""
    actual = images.fingerprint()
    if same_images(recorded, actual):
        return ""
    once = images.take(i for i in images.ids if i not in images.copies)
    advice = ""
    if same_images(recorded, images.with_copies().fingerprint()):
        advice = f"; {ALLOW}"
    elif same_images(recorded, once.fingerprint()):
        advice = "; leave out --allow-duplicates"
    return f"{describe(recorded)}, but the data folder contains {describe(actual)}{advice}"


def require_same(recorded: dict, images: ImageSet, prefix: str) -> None:
    """Raise InputError, its message starting with `prefix`, if a fingerprint is not that of
    `images`."""
    if other := other_images(recorded, images):
        raise InputError(f"{prefix} {other}")


def require_same_order(recorded: dict, images: ImageSet, prefix: str) -> None:
    """Raise InputError, its message starting with `prefix`, if a fingerprint of the same images has
    their classes, which labels number, in another order than `images`."""
    if (order := list(recorded["counts"])) != list(images.classes):
        raise InputError(f"{prefix} the classes in another order: {listed(map(quoted, order))}")


_load_lock = threading.Lock()


def _array(file: Path, array: str) -> np.ndarray:
    with _load_lock:  # so that only one thread loads it
        loaded = _load(file, array)
    if isinstance(loaded, Exception):
        raise loaded
    return loaded


@functools.lru_cache(maxsize=3)  # training, validation and test arrays of a file
def _load(file: Path, array: str) -> np.ndarray | Exception:
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(file) as arrays:
            return read_array(arrays, array)
    except Exception as error:  # cached, so as not to retry for each image
        return error


@contextlib.contextmanager
def _opened(path: Location) -> Iterator[Image.Image]:
    """Open an image by its content, in one of `FORMATS`, DICOM or HEIC."""
    if isinstance(path, ArrayImage):
        yield Image.fromarray(_array(path.file, path.array)[path.row])
        return
    if os.path.exists(path) and not os.path.isfile(path):  # opening a named pipe blocks
        raise ValueError("not a file")
    extension = os.path.splitext(path)[1].lower()
    if extension in OTHERS:
        raise ValueError(OTHERS[extension])
    with open(path, "rb") as file:
        found = format_of(file.read(HEAD))
        file.seek(0)
        if found == "HEIC":
            yield open_heic(file)
        elif found == "DICOM" or (found is None and extension in DICOM):
            yield read_dicom(file)
        elif found and found not in FORMATS:
            raise ValueError(found)
        else:
            image = Image.open(file, formats=FORMATS)
            if image.format == "PNG":  # Pillow checks checksums only in verify()
                image.verify()
                file.seek(0)
                image = Image.open(file, formats=FORMATS)
            yield image


NEW_SUBFILE_TYPE = 254  # TIFF tag; bit 0: a page of reduced resolution
ORIENTATION = 0x0112  # EXIF tag; UPRIGHT maps its values to the correction
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Location, draft: bool = False) -> Image.Image:
    """Return the image as RGB in its EXIF orientation; `draft`: JPEGs at about 1/8 resolution.

    Raises InputError, naming the file, if it cannot be decoded, has more than 8 bits per channel,
    since the intensity window is unknown, or several pages or frames.
    """
    try:
        with _opened(path) as image:
            _check(image, path)
            if draft:  # still reads every byte of a JPEG, but is much faster
                image.draft("RGB", (image.width // 8 or 1, image.height // 8 or 1))
            image.load()  # applies the orientation of TIFF files only
            correction = None
            if image.format != "TIFF":
                with contextlib.suppress(Exception):  # ignore a broken tag, as viewers do
                    correction = UPRIGHT.get(image.getexif().get(ORIENTATION))
            rgb = image.convert("RGB")
        return rgb if correction is None else rgb.transpose(correction)
    except Exception as error:  # decoders raise errors of any type on corrupt data
        pass_on(error, f"{path}, which may be too large")
        why = "not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise InputError(f"{path}: {why}") from error


def _check(image: Image.Image, path: Location) -> None:
    if 0 in image.size:
        raise ValueError("no pixels")
    # Pillow silently reduces 16-bit multi-channel images to their upper 8 bits.
    if (
        image.mode[0] in "IF"
        or re.search(r";16[BLN]", str(getattr(image, "tile", "")))
        or _depth(image, path) > 8
    ):
        raise ValueError("more than 8 bits per channel; convert to 8 bits")
    if (frames := _frames(image)) > 1:
        raise ValueError(f"{image.format} with {frames} pages or frames; export the one to be used")


def _depth(image: Image.Image, path: Location) -> int:
    """Return the bits per channel of formats of which Pillow does not tell them, else 8."""
    if image.format == "PPM":  # the decoder's argument is the largest value
        args = image.tile[0][3]
        largest = args[-1] if isinstance(args, tuple) else args
        return largest.bit_length() if isinstance(largest, int) else 8
    if image.format == "JPEG2000" and isinstance(path, Path):
        with open(path, "rb") as file:
            size = re.search(rb"\xff\x4f\xff\x51.{38}(.)", file.read(2**16), re.DOTALL)
        return (size[1][0] & 0x7F) + 1 if size else 8  # Ssiz of the first component
    return 8


def _frames(image: Image.Image) -> int:
    """Return the number of frames, or of a TIFF file's pages that are not previews."""
    frames = 1
    if image.format in ("GIF", "HEIF", "PNG", "TIFF", "WEBP"):
        with contextlib.suppress(Exception):  # a damaged page after the first
            frames = image.n_frames
            if image.format == "TIFF" and frames > 1:
                for frame in range(1, image.n_frames):
                    image.seek(frame)
                    frames -= image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1
        if image.tell():
            image.seek(0)
    return frames


def unreadable(paths: Iterable[Location]) -> dict[Location, str]:
    """Decode the images at `paths` and return the error messages of those that fail, by path."""

    def error_of(path: Location) -> str | None:
        try:
            read_image(path, draft=True)
        except InputError as error:
            return str(error)
        return None

    paths = list(paths)
    errors = in_threads(error_of, paths, "checking images")
    return {path: error for path, error in zip(paths, errors) if error}


def check_readable(*sets: ImageSet) -> None:
    """Raise InputError listing all images of `sets` that cannot be decoded."""
    if errors := unreadable(path for images in sets for path in images.paths):
        raise unreadable_error(errors.values(), sum(map(len, sets)))


def without_unreadable(
    images: ImageSet, show: bool = True, may_be_empty: bool = False
) -> tuple[ImageSet, dict[str, str]]:
    """Return `images` without those that cannot be decoded, which are printed if `show`, and by
    their ids the reasons. Raises InputError if none is left, unless it `may_be_empty`."""
    errors = unreadable(images.paths)
    if errors and len(errors) == len(images) and not may_be_empty:
        raise InputError(
            f"none of the {len(images)} images can be read: {listed(errors.values(), 100)}"
        )
    if errors and show:
        skipped = f"{len(errors)} of {len(images)} images"
        if images.classes != (UNKNOWN,):
            skipped += f" of {', '.join(images.classes)}"
        print(f"note: skipping unreadable files, {skipped}: {listed(errors.values(), 100)}")
    reasons = {
        i: errors[path].removeprefix(f"{path}: ")
        for i, path in zip(images.ids, images.paths)
        if path in errors
    }
    return images.take(i for i in images.ids if i not in reasons), reasons


def unreadable_error(errors: Collection[str], total: int) -> InputError:
    """Return the InputError that lists the `errors` of `read_image` for a set of `total` images."""
    return InputError(
        f"{len(errors)} of {total} images cannot be read; repair, convert or remove them, or "
        f"skip them with --skip-unreadable: {listed(errors, limit=100)}"
    )


class TransformedImages(Dataset):
    """Dataset of `transform(image)`, one view per image, for evaluation."""

    def __init__(self, images: ImageSet, transform: Callable):
        self.paths = images.paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        return self.transform(read_image(self.paths[row]))
