"""Random data folders and tables for tests/bad_files.py.

Each file of a folder must be an image of exactly one class, or be named as passed over, or the
folder must be refused in one line; each row of a table must be an image of the class that it names.
"""

import csv
import io
import json
import os
import random
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from common.errors import InputError
from common.files import parse_json
from common.names import clean, folded, printable
from datasets import Collection, isic2018, oct, open_dataset, papsmear
from datasets.duplicates import REASON, without_copies
from datasets.listing import FORMATS

NFC, NFD = (unicodedata.normalize(form, "névus") for form in ("NFC", "NFD"))
CLASSES = [*"scar vessel A$1$ 病变 _x -b x.png 🦠".split(), "p$<0.05 \\x$", "a b"]
ODD_CLASSES = [
    "Scar", " scar", "scar\u200b", NFC, NFD, "a\nb", "a  b", "'", "ＳＣＡＲ", "\u200b", "c" * 200
]  # fmt: skip
SYSTEM = ["@eaDir", ".thumbnails", "Thumbs", "__MACOSX", "$RECYCLE.BIN", ".Trash-0", "lost+found"]
SYSTEM_FILES = "Thumbs.db desktop.ini .DS_Store ._1.jpg .x.png DICOMDIR THUMBS.DB".split()
FOLDERS = ["train", "patient 1", "left", "a.jpg", NFD, "é\n", "d" * 100]
ENDS = [*".jpg .JPG .jfif .webp .tif .txt .csv .pdf .dat .zip .svg .".split(), ""]
IMAGE_ENDS = {".jpg", ".jfif", ".webp", ".tif"}  # the others are looked into
MISC = "other"


def contents() -> dict[str, list[bytes]]:
    """Return file contents: images of each format, and what is none."""
    found: dict[str, list[bytes]] = {"image": [], "text": [b"", b"BMI,age", b"P1 x", b"%PDF-1.7"]}
    for kind in FORMATS:
        out = io.BytesIO()
        Image.new("RGB", (4, 4)).save(out, format=kind)
        found["image"].append(out.getvalue())
    return found


class Tree:
    """A random folder; `truth` has what each file written must become, by its relative path."""

    def __init__(self, root: Path, dice: random.Random, known: dict[str, list[bytes]]):
        self.root, self.dice, self.known = root, dice, known
        self.truth: dict[str, str] = {}
        self.odd = False  # whether the folder may be refused
        root.mkdir()

    def name(self) -> str:
        return f"{self.dice.randrange(30)}{self.dice.choice(ENDS)}"

    def file(self, folder: Path, system: bool, in_class: bool) -> None:
        dice, kind = self.dice, self.dice.choice(["image", "image", "image", "text"])
        stray = dice.random() < 0.1
        path = folder / (dice.choice(SYSTEM_FILES) if stray else self.name())
        if os.path.lexists(path):
            return
        chance = dice.random()
        if chance < 0.9:
            path.write_bytes(dice.choice(self.known[kind]))
        elif chance < 0.93:
            path.symlink_to("nowhere")
            kind = "image" if path.suffix.lower() in IMAGE_ENDS else "text"
        elif chance < 0.95:
            os.mkfifo(path)
            kind = "image" if path.suffix.lower() in IMAGE_ENDS else "text"
        elif chance < 0.98 and self.truth:
            other = self.root / dice.choice(sorted(self.truth))
            path.symlink_to(other)
            kind = MISC
        else:
            path = Path(os.fsdecode(os.fsencode(path) + b"\xe4"))
            path.write_bytes(b"")
            kind = "text"
        if path.suffix.lower() in IMAGE_ENDS and kind == "text":
            kind = "image"  # that cannot be read
        elif not path.name.isascii() and kind == "image":
            self.odd = True
        if stray or system or not in_class:
            kind = "text"
        self.truth[str(path.relative_to(self.root))] = kind

    def fill(self, folder: Path, system: bool, in_class: bool = True, depth: int = 0) -> None:
        """Write files, folders and links into `folder`."""
        dice = self.dice
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(dice.choice([0, 1, 3, 6])):
            self.file(folder, system, in_class)
        for _ in range(dice.choice([0, 0, 1, 2]) if depth < 3 else 0):
            stray = dice.random() < 0.3
            inside = folder / dice.choice(SYSTEM if stray else FOLDERS)
            if not os.path.lexists(inside):
                self.fill(inside, system or stray, in_class, depth + 1)
        if dice.random() < 0.03:
            inside = folder / dice.choice(["link", "link.jpg"])
            if not os.path.lexists(inside):
                inside.symlink_to(
                    dice.choice([self.root, folder, folder.parent, self.root.parent / "y"])
                )
                self.odd = True
        if dice.random() < 0.01:
            os.makedirs(os.fsencode(folder) + b"/\xe4", exist_ok=True)
            self.odd = True


def own_folder(tree: Tree) -> tuple:
    dice = tree.dice
    names = dice.sample(CLASSES, dice.randint(3, 6))
    if dice.random() < 0.4:
        names += dice.sample(ODD_CLASSES, dice.randint(1, 3))
        tree.odd = True
    for name in names:
        tree.fill(tree.root / name, system=False)
        (tree.root / name / "certain.png").write_bytes(tree.known["image"][0])
        tree.truth[f"{name}/certain.png"] = "image"
    for _ in range(dice.randrange(3)):
        tree.file(tree.root, system=False, in_class=False)
    if dice.random() < 0.3:
        tree.fill(tree.root / dice.choice(SYSTEM), system=True)
    labels = list(dict.fromkeys(filter(None, map(clean, names))))
    dice.shuffle(labels)
    some = labels if dice.random() < 0.7 else labels[:3]
    if len({*map(folded, labels)}) < len(labels) and len(some) < len(labels):
        tree.odd = True
    return some[:1], some[1:]


def class_folders(module) -> Callable[[Tree], tuple]:
    """Return a writer of random folders with the classes of `module`."""

    def write(tree: Tree) -> tuple:
        dice = tree.dice
        for name in module.CLASSES:
            inside = tree.root / name
            if module is oct and name in oct.BASE_CLASSES:
                inside = tree.root / dice.choice([".", *oct.PARTS]) / name
            tree.fill(inside, system=False)
            certain = (inside / "certain.png").relative_to(tree.root)
            (tree.root / certain).write_bytes(tree.known["image"][0])
            tree.truth[str(certain)] = "image"
        for name in dice.sample(["README", *CLASSES], 2):
            if not (tree.root / name).exists():
                tree.fill(tree.root / name, system=False, in_class=False)
        return None, None

    return write


def isic_folder(tree: Tree) -> tuple:
    """Write images, of which some are not in the ground truth, and what else may be there."""
    dice, images = tree.dice, tree.root / isic2018.IMAGES
    lines = [",".join(isic2018.COLUMNS)]
    images.mkdir()
    for number in range(30):
        label = number % 7
        (images / f"ISIC_{number}{dice.choice(['.jpg', '.jpg', '.JPG', '.png', ''])}").write_bytes(
            dice.choice(tree.known["image"])
        )
        if number < 14 or dice.random() < 0.7:
            lines.append(",".join([f"ISIC_{number}", *("01"[label == n] for n in range(7))]))
    for _ in range(4):
        tree.file(images, system=False, in_class=False)
        tree.file(tree.root, system=False, in_class=False)
    tree.fill(images / "more", system=False, in_class=False)
    tree.truth = {name: MISC for name in tree.truth}
    (tree.root / isic2018.GROUND_TRUTH).mkdir()
    table = tree.root / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv"
    table.write_text(dice.choice(["\n", "\r\n"]).join(lines))
    return None, None


def files_of(root: Path) -> list[str]:
    """Return the relative paths of all files of an accepted folder, through links to folders."""
    found, stack = [], [""]
    while stack:
        inside = stack.pop()
        for name in os.listdir(root / inside):
            path = os.path.join(inside, name)
            if os.path.isdir(root / path) and path.count("/") < 12:
                stack.append(path)
            else:
                found.append(path)
    return found


def check_folder(tree: Tree, data: Collection, unused: int) -> None:
    """Assert that each file is in exactly one class or named as passed over."""
    paths = [*data.base.paths, *data.rare.paths]
    classes = [s.classes[label] for s in (data.base, data.rare) for label in s.labels]
    label_of = dict(zip((os.path.relpath(path, tree.root) for path in paths), classes))
    assert len(label_of) == len(paths) == len({*data.base.ids, *data.rare.ids})
    names = [name for names in data.passed_over.values() for name in names]
    passed = {name for name in names if not name.endswith("/")}
    folders = tuple(name for name in names if name.endswith("/"))
    assert len(passed) + len(folders) == len(names), "named twice"
    isic = f"{isic2018.GROUND_TRUTH}/"
    for path in (path for path in files_of(tree.root) if not path.startswith(isic)):
        is_passed = printable(path) in passed or printable(path).startswith(folders or ("\0",))
        assert (path in label_of) != is_passed or unused, f"{path!r}: {label_of.get(path)}"
        truth = tree.truth.get(path, MISC)
        assert truth != "image" or path in label_of or unused, f"{path!r} is an image"
        assert truth != "text" or is_passed, f"{path!r} is no image"
    for path, label in label_of.items():
        assert clean(label) == label and os.path.lexists(tree.root / path)
        if data.name not in (isic2018.NAME, oct.NAME):
            assert clean(path.split("/")[0]) == label
    lines = data.summary().splitlines()
    assert all(line.isprintable() for line in lines) and len(lines) < 40
    assert parse_json(json.dumps(data.to_dict()), newest=0) == data.to_dict()


def check_copies(data: Collection, known: dict[str, list[bytes]]) -> None:
    """Assert that one content in two classes is refused, and that otherwise each content stays
    once, with the other files that have it named."""
    ids_of: dict[bytes, dict[str, str]] = {}
    for images in (data.base, data.rare):
        for i, path, label in zip(images.ids, images.paths, images.labels):
            if path.is_file() and (content := path.read_bytes()) in known["image"]:
                ids_of.setdefault(content, {})[i] = images.classes[label]
    if mixed := [ids for ids in ids_of.values() if len(set(ids.values())) > 1]:
        try:
            without_copies(data, None)
            raise AssertionError("one content in two classes is not refused")
        except InputError as error:
            assert f"in two classes ({len(mixed)})" in str(error) and "\n" not in str(error)
        data = data.without([i for ids in mixed for i in ids], "in two classes")
    copies = {i: min(ids) for ids in ids_of.values() if ids not in mixed for i in ids}
    once = without_copies(data, None)
    left = {*data.base.ids, *data.rare.ids} - {*once.base.ids, *once.rare.ids}
    assert left == {i for i, first in copies.items() if i != first}
    named = [printable(f"{i} (as {copies[i]})") for i in sorted(left)]
    assert list(once.passed_over.get(REASON, ())) == named
    assert all(line.isprintable() for line in once.summary().splitlines())


FOLDER_KINDS: dict[str, Callable[[Tree], tuple]] = {
    "own folders": own_folder,
    "papsmear folders": class_folders(papsmear),
    "oct folders": class_folders(oct),
    "isic folders": isic_folder,
}


def folder_outcome(kind: str, folder: Path, dice: random.Random, known: dict) -> str:
    """Make a random data folder; return 'refused' or 'valid', or raise AssertionError."""
    tree = Tree(folder / "x", dice, known)
    try:
        classes = FOLDER_KINDS[kind](tree)
        try:
            data = open_dataset(tree.root, *classes)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            assert tree.odd, f"refused: {error}"
            return "refused"
        check_folder(tree, data, sum(data.others.counts().values()))
        check_copies(data, known)
        return "valid"
    finally:
        shutil.rmtree(os.fsencode(tree.root))


def table_outcome(folder: Path, dice: random.Random, known: dict) -> str:
    """Make a random table of images; return 'refused' or 'valid', or raise AssertionError."""
    root = folder / "x"
    try:
        labels = dice.sample(CLASSES, 4)
        rows, odd = [], False
        for number in range(dice.randint(8, 20)):
            inside = dice.choice([".", "ä", "p 1"])
            (root / inside).mkdir(parents=True, exist_ok=True)
            name = f"{inside}/{number}{dice.choice(ENDS)}".removeprefix("./")
            (root / name).write_bytes(dice.choice(known["image"]))
            rows.append([name, labels[number % 4]])
        expected = Counter(label for _, label in rows)
        kind = dice.randrange(8)
        if kind == 0:
            repeated = rows[0]  # counts once
            rows.append(
                dice.choice([repeated, ["gone.jpg", labels[0]], ["x"], ["", ""], [name, ""]])
            )
            odd = rows[-1] is not repeated
        elif kind == 1:
            rows[0][1] = dice.choice([labels[0].upper() + "x", "other", f" {labels[0]}\u200b"])
            expected = Counter(clean(label) for _, label in rows)
        elif kind == 2:
            rows = [[f" {path} ", f"{label}\t"] for path, label in rows]
        delimiter, slash = dice.choice(",;\t"), dice.choice("/\\")
        encoding = dice.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, lineterminator=dice.choice(["\n", "\r\n"]))
        columns = dice.sample(["path", "label", "age"], 3)
        writer.writerow([dice.choice([name, name.upper()]) for name in columns])
        for row in rows:
            values = dict(zip(("path", "label"), (row[0].replace("/", slash), *row[1:])), age="40")
            writer.writerow([values[name] for name in columns if name in values])
        content = out.getvalue()
        try:
            content.encode(encoding)
        except UnicodeEncodeError:
            encoding = "utf-8"
        (root / "t.csv").write_bytes(content.encode(encoding))
        try:
            data = open_dataset(root / "t.csv", labels[:1], labels[1:])
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            assert odd, f"refused: {error}"
            return "refused"
        found = (
            Counter(data.base.counts())
            + Counter(data.rare.counts())
            + Counter(data.others.counts())
        )
        assert not odd and found == expected, (found, expected)
        return "valid"
    finally:
        shutil.rmtree(root)
