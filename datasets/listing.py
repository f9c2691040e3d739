"""List a dataset's files: images with their classes, and what was passed over and why.

A file with the extension of an image is one; of any other the first bytes decide. What is no image
is named in `Listing.passed_over`, so that nothing is left out silently.
"""

import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, NoReturn

from common.errors import InputError, is_text, listed, pass_on
from common.names import clean, counted, folded, printable, quoted

UNKNOWN = "?"  # class of images without a label
UNLABELLED = "images"  # their part in the block
NAMED = 3  # files passed over that are named

# Read by Pillow, whatever the extension. Excludes PostScript, which Pillow runs in Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
DICOM = {".dcm", ".dicom"}
# Images that cannot be read here, and what would help. Pillow would read the previews in some.
RAW, SLIDE = "camera RAW; convert it to PNG or JPEG", "whole-slide image; export its tiles as PNG"
UNREAD = "a format that is not read; convert it to PNG"
OTHERS = {
    **dict.fromkeys(".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mrw .nef".split(), RAW),
    **dict.fromkeys(".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split(), RAW),
    **dict.fromkeys(".bpg .exr .fits .jxr .pcx .sgi .tga .xcf".split(), UNREAD),
    **dict.fromkeys(".bif .czi .lif .mrxs .ndpi .scn .svs .vms .vsi".split(), SLIDE),
}  # fmt: skip
EXTENSIONS = {
    *".apng .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .pbm".split(),
    *".pgm .png .pnm .ppm .tif .tiff .webp".split(),
    *DICOM, *OTHERS, *".avif .heic .heif .hif .jxl .psd".split(),
}  # fmt: skip
# Not images, with what would help.
REASONS = {
    **dict.fromkeys(".ai .emf .eps .ps .svg .wmf".split(), "vector graphics (export as PNG)"),
    **dict.fromkeys(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split(),
                    "videos (export frames as PNG)"),
    **dict.fromkeys(".mha .mhd .mnc .nhdr .nii .nrrd".split(), "volumes (export slices as PNG)"),
    **dict.fromkeys(".7z .bz2 .gz .rar .tar .tgz .xz .zip".split(), "archives (unpack them)"),
}  # fmt: skip
NOT_IMAGES = "not images"
OUTSIDE = "outside the class folders"
# Made by systems and programs, not by people: hidden ones, AppleDouble (._x) and these.
SYSTEM = "system, hidden and thumbnail files"
SYSTEM_FILES = {"desktop.ini", "dicomdir", "ehthumbs.db", "icon\r", "thumbs.db"}
SYSTEM_FOLDERS = {
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@tmp", "__macosx", "__pycache__",
    "_thumbnails", "_thumbs", "lost+found", "recycled", "recycler", "system volume information",
    "thumbnails", "thumbs",
}  # fmt: skip

HEAD = 160  # bytes that tell the format
SIGNATURES = {
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "JPEG": rb"\xff\xd8\xff",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "PPM": rb"P[1-6]\s(\s|#[^\n]*\n)*\d+\s+\d+\s",
    RAW: rb"II\*\0.{4}CR|FUJIFILM|IIR[OS]|IIU\0|.{4}ftypcrx ",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"RIFF.{4}WEBP",
    "HEIC": rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "DICOM": rb".{128}DICM",
    "AVIF, which is not read; convert it to PNG": rb".{4}ftypavi[fs]",
    "JPEG XL, which is not read; convert it to PNG": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "Photoshop file; export it as PNG": rb"8BPS",
}
PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in SIGNATURES.items()}


class ArrayImage(NamedTuple):
    """Location of an image in an array file: row `row` of `array` in an .npz, or of an .npy."""

    file: Path
    array: str
    row: int

    def __str__(self) -> str:
        return f"{self.array}[{self.row}] of {self.file}"


Location = Path | ArrayImage


class Folder(str):
    """The name of a folder passed over, and how many files it and its subfolders hold."""

    files: int

    def __new__(cls, name: str, files: int) -> "Folder":
        folder = super().__new__(cls, printable(name) + "/")
        folder.files = files
        return folder


class Row(NamedTuple):
    """An image of a dataset; images of one `group` show one patient or lesion. `folder` is the
    name of the first folder below that of the class, if the image lies in one."""

    id: str
    path: Location
    label: str
    group: str | None = None
    folder: str | None = None


@dataclass
class Listing:
    """The images of a dataset; the names of files and folders passed over, by reason; and `notes`
    on how the rest was read. `visited` has the real paths of the folders walked through."""

    rows: list[Row] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    visited: dict[str, str] = field(default_factory=dict)

    def pass_over(self, reason: str, *names: str) -> None:
        """Record that `names` are no images of the dataset, because of `reason`."""
        if names:
            shown = [n if isinstance(n, Folder) else printable(n) for n in names]
            self.passed_over.setdefault(reason, []).extend(shown)

    def add_folder(self, root: Path, folder: Path, label: str | None = None) -> int:
        """Add the images in `folder`, inside `root`, and in its subfolders; return their number.

        Their class is `label`, by default the folder's name; ids are paths relative to `root`.
        Raises InputError as `images_in` does.
        """
        label = clean(folder.name) if label is None else label
        inside = "" if folder == root else str(folder.relative_to(root))
        images = self.images_in(folder, inside)
        length = len(os.path.join(folder, ""))
        for i, path in images:
            first, separator, _ = path[length:].partition(os.sep)
            self.rows.append(Row(i, Path(path), label, folder=first if separator else None))
        return len(images)

    def images_in(self, folder: Path, inside: str = "") -> list[tuple[str, str]]:
        """Return the ids and paths of the images in `folder` and its subfolders, sorted.

        Ids, and the names of what is passed over, are relative to `folder` and prefixed by
        `inside`. Follows links to folders. Raises InputError for names that are not UTF-8, and for
        a folder reached twice by links.
        """
        images: list[tuple[str, str]] = []  # strings: a million Path objects would take minutes
        length = len(os.path.join(folder, ""))
        for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
            if not is_text(os.path.basename(parent)):
                raise InputError(f"a folder name is not UTF-8; rename: {ascii(parent)}")
            if (first := self.visited.setdefault(os.path.realpath(parent), parent)) != parent:
                raise InputError(f"{parent} and {first} are the same folder; remove the link")
            relative = os.path.join(inside, parent[length:])
            folders[:] = self.without_system(parent, folders, relative)
            names = []
            for name in sorted(files):
                if reason := reason_to_pass_over(parent, name):
                    self.pass_over(reason, os.path.join(relative, name))
                else:
                    names.append(name)
            if invalid := [ascii(name) for name in names if not is_text(name)]:
                raise InputError(f"file names in {parent} are not UTF-8; rename: {listed(invalid)}")
            images += [(os.path.join(relative, name), os.path.join(parent, name)) for name in names]
        return sorted(images)

    def note_folders_of_others(self, classes: Iterable[str]) -> None:
        """Note the folders that bear the name of one of `classes` and hold images of another."""
        named = {folded(name): name for name in classes}
        inside = Counter((os.path.dirname(row.id), row.label) for row in self.rows)
        others: Counter[str] = Counter()
        for (folder, label), number in inside.items():
            names = {named.get(folded(part)) for part in folder.split("/")} - {None}
            if names and names != {named[folded(label)]}:
                others[f"{printable(folder)}/ (as {quoted(label)})"] += number
        if others:
            self.notes.append(
                f"{others.total()} images in folders with the name of another class: "
                + listed(others, NAMED)
            )

    def without_system(self, parent: str | Path, folders: list[str], name: str = "") -> list[str]:
        """Return those of the `folders` in `parent`, called `name`, that are not hidden or a
        system's, sorted; pass over the others."""
        system = set(filter(is_system_folder, folders))
        self.pass_over_folders(SYSTEM, parent, system, name)
        return sorted(folder for folder in folders if folder not in system)

    def pass_over_folders(
        self, reason: str, parent: str | Path, folders: Iterable[str], name: str = ""
    ) -> None:
        """Pass over `folders` in `parent`, called `name`, with all that they hold."""
        for folder in sorted(folders):
            files = sum(len(files) for _, _, files in os.walk(os.path.join(parent, folder)))
            self.pass_over(reason, Folder(os.path.join(name, folder), files))

    def pass_over_rest(
        self, root: Path, used: Container[str], reason: str, prefix: str = ""
    ) -> None:
        """Pass over all entries of `root`, named with `prefix`, but those `used`: system files as
        such, the others for `reason`."""
        with os.scandir(root) as entries:
            rest = sorted((e.name, e.is_dir()) for e in entries if e.name not in used)
        others = self.without_system(root, [name for name, is_dir in rest if is_dir], prefix)
        self.pass_over_folders(reason, root, others, prefix)
        for name in (name for name, is_dir in rest if not is_dir):
            self.pass_over(SYSTEM if is_system(name) else reason, prefix + name)


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden or made by a system."""
    return name[0] == "." or name.casefold() in SYSTEM_FOLDERS


def is_system(name: str) -> bool:
    """Return whether a file is hidden (AppleDouble's ._x are, too) or made by a system."""
    return name[0] == "." or name.casefold() in SYSTEM_FILES


def reason_to_pass_over(folder: str, name: str) -> str | None:
    """Return why the file `name` in `folder` is no image; None if it is one, readable or not."""
    if is_system(name):
        return SYSTEM
    extension = os.path.splitext(name)[1].lower()
    if extension in EXTENSIONS:  # not opened, so that a million files take seconds
        return None
    try:
        path = os.path.join(folder, name)
        if not S_ISREG(os.stat(path).st_mode):  # opening a named pipe blocks
            return "neither files nor folders"
        with open(path, "rb") as file:
            if format_of(file.read(HEAD)):
                return None
    except OSError as error:
        pass_on(error)
        if isinstance(error, FileNotFoundError) or re.match(r"\.[a-z]", extension):
            return f"{error.strerror}"
        return None  # named as DICOM files are: reported with the unreadable images
    if name.lower().endswith(".nii.gz"):
        extension = ".nii"
    return REASONS.get(extension, NOT_IMAGES)


def format_of(head: bytes) -> str | None:
    """Return the image format that the first HEAD bytes of a file tell: one of `FORMATS`, HEIC,
    DICOM, or what would help to read it; None if it is no image."""
    return next((name for name, pattern in PATTERNS.items() if pattern.match(head)), None)


def _raise(error: OSError) -> NoReturn:
    raise error


Counts = dict[str, dict[str, int]]  # images per class, by part: base, rare, not used
Names = Mapping[str, Sequence[str]]  # of files passed over, by reason


def number_of(names: Iterable[str]) -> int:
    """Return the number of files passed over under `names`, of which a folder holds any number;
    an empty one counts as one."""
    return sum(max(n.files, 1) if isinstance(n, Folder) else 1 for n in names)


def found(name: str, parts: Counts, passed_over: Names, notes: Sequence[str] = ()) -> dict:
    """Return what was found in a data folder as JSON types, with up to NAMED names a reason."""
    return {
        "dataset": name,
        **{part.replace(" ", "_"): counts for part, counts in parts.items()},
        "passed_over": {
            reason: {"number": number_of(names), "first": list(map(str, names[:NAMED]))}
            for reason, names in passed_over.items()
        },
        "notes": list(notes),
    }


def summary(
    name: str, parts: Counts, passed_over: Names, notes: Sequence[str] = (), quiet: bool = False
) -> str:
    """Return what was found in a data folder as a block of lines, or if `quiet` as a line."""
    numbers = {part: sum(counts.values()) for part, counts in parts.items()}
    numbers["passed over"] = sum(map(number_of, passed_over.values()))
    numbers = {part: n for part, n in numbers.items() if n or part == "passed over" and passed_over}
    if quiet:
        return f"{name}: " + ", ".join(f"{number} {part}" for part, number in numbers.items())
    lines = [f"{name}:"]
    for part, number in numbers.items():
        classes = counted({} if part == UNLABELLED else parts.get(part, {}))
        lines.append(f"  {part:11} {number:>7}  {classes}".rstrip())
    for reason, names in passed_over.items():
        lines.append(f"  {'':11} {number_of(names):>7}  {reason}: {listed(names, NAMED)}")
    return "\n".join(lines + [f"  note: {note}" for note in notes])
