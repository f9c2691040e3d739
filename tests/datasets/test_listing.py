"""Which files of a folder are images, and what is said of the others."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from datasets import oct, open_dataset, papsmear
from datasets.images import check_readable, read_image
from datasets.listing import FORMATS, NAMED, Listing

CLASSES = ["a"], ["b", "c"]
NAMES = {"BMP": "dib", "GIF": "gif", "JPEG": "jfif", "JPEG2000": "jp2", "PNG": "PNG",
         "PPM": "pgm", "TIFF": "TIFF", "WEBP": "webp"}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Three classes of two images."""
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.jpg")
    return tmp_path


def save(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path, format=kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_is_read_under_any_name(root, kind):
    for name in (f"x.{NAMES[kind]}", "extensionless", "y.txt", "z.jpg", "w.dat"):
        save(root / "a" / name, kind)
    data = open_dataset(root, *CLASSES)
    assert data.base.counts() == {"a": 7} and not data.passed_over
    check_readable(data.base)


@pytest.mark.parametrize(
    "text", ["notes", "BMI,age\n20,40\n" * 9, "P1 is the first patient", "%PDF-1.7", "", "II*"]
)
def test_text_is_no_image(root, text):
    for name in ("notes.txt", "extensionless"):
        (root / "a" / name).write_text(text)
    data = open_dataset(root, *CLASSES)
    assert data.base.counts() == {"a": 2}
    assert data.passed_over == {"not images": ("a/extensionless", "a/notes.txt")}


@pytest.mark.parametrize(
    "name, reason",
    [
        ("x.svg", "vector graphics (export as PNG)"),
        ("X.EPS", "vector graphics (export as PNG)"),
        ("film.mp4", "videos (export frames as PNG)"),
        ("brain.nii.gz", "volumes (export slices as PNG)"),
        ("more.zip", "archives (unpack them)"),
        ("report.pdf", "not images"),
        ("table.xlsx", "not images"),
    ],
)
def test_what_would_help(root, name, reason):
    (root / "a" / name).write_bytes(b"%!PS or whatever")
    data = open_dataset(root, *CLASSES)
    assert data.passed_over == {reason: (f"a/{name}",)}
    assert f"1  {reason}: a/{name}" in data.summary()


@pytest.mark.parametrize(
    "name, head, says",
    [
        ("x.nef", b"II*\0", "camera RAW; convert it to PNG or JPEG"),
        ("x.dat", b"II*\0\x10\0\0\0CR\x02\0", "camera RAW"),
        ("x.TGA", b"", "a format that is not read; convert it to PNG"),
        ("x.svs", b"II*\0", "whole-slide image; export its tiles"),
        ("x.avif", b"\0\0\0\x1cftypavif", "AVIF, which is not read; convert it to PNG"),
        ("x", b"\xff\x0a\0", "JPEG XL, which is not read"),
        ("x.psd", b"8BPS", "Photoshop file; export it"),
        ("x.jpg", b"<html>404</html>", "not an image"),
    ],
)
def test_images_that_cannot_be_read_are_not_passed_over(root, name, head, says):
    """They would be missing from a class silently."""
    (root / "a" / name).write_bytes(head + bytes(200))
    data = open_dataset(root, *CLASSES)
    assert len(data.base) == 3 and not data.passed_over
    with pytest.raises(InputError, match=f"1 of 3 images .*{name}: {says}"):
        check_readable(data.base)


def test_previews_in_raw_files_are_not_read(root):
    save(root / "a" / "x.dng", "TIFF")  # Pillow would read it
    with pytest.raises(InputError, match="x.dng: camera RAW"):
        read_image(root / "a" / "x.dng")


STRAY = [
    ".hidden.jpg", "._0.jpg", "Thumbs.db", "desktop.ini", "DICOMDIR", "Icon\r", ".DS_Store",
    "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/0.png", "Thumbnails/0.png", "thumbs/0.jpg",
    "__MACOSX/a/._0.jpg", "$RECYCLE.BIN/x.jpg", ".Trash-1000/x.jpg", "#recycle/x.jpg",
    ".ipynb_checkpoints/0.jpg",
]  # fmt: skip
SYSTEM = "system, hidden and thumbnail files"


@pytest.mark.parametrize("parent", ["a", "a/ward", "."])
@pytest.mark.parametrize("name", STRAY)
def test_stray_files(root, parent, name):
    save(root / parent / name)
    save(root / "a" / "ward" / "2.png")
    data = open_dataset(root, *CLASSES)
    assert data.base.ids == ("a/0.jpg", "a/1.jpg", "a/ward/2.png")
    folder, slash, _ = name.partition("/")
    stray = os.path.normpath(os.path.join(parent, folder)).replace("\r", "\\r") + slash
    assert data.passed_over == {SYSTEM: (stray,)}


def test_entries_that_are_no_files(root):
    os.mkfifo(root / "a" / "pipe")  # must not block
    (root / "a" / "dangling").symlink_to("nowhere")
    assert open_dataset(root, *CLASSES).passed_over == {
        "No such file or directory": ("a/dangling",),
        "neither files nor folders": ("a/pipe",),
    }


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113", "link", "notes.txt", "x.jpg"])
def test_images_without_permission_do_not_leave_their_class(root, monkeypatch, name):
    """Under a name that may be an image's."""
    save(root / "a" / name)

    original = open

    def open_other(path, *args, **kwargs):
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_other)
    data = open_dataset(root, *CLASSES)
    if name == "notes.txt":
        assert data.passed_over == {"Permission denied": ("a/notes.txt",)}
    else:
        assert data.base.counts() == {"a": 3} and not data.passed_over
        with pytest.raises(InputError, match=f"1 of 3 images .*{name}: Permission denied"):
            check_readable(data.base)


def test_a_folder_called_like_an_image_is_a_folder(root):
    save(root / "a" / "series.png" / "0.png")
    assert "a/series.png/0.png" in open_dataset(root, *CLASSES).base.ids


def test_the_block_of_what_was_found(root):
    for name in ("d1", "d2"):
        save(root / name / "0.png")
    for number in range(5):
        (root / "b" / f"{number}.txt").touch()
    save(root / "loose.jpg")
    (root / "empty").mkdir()
    for number in range(3):  # a folder passed over counts as the files that it holds
        save(root / "b" / "@eaDir" / "thumbs" / f"{number}.jpg")
    data = open_dataset(root, *CLASSES)
    assert data.summary().splitlines() == [
        f"{root.name}:",
        "  base              2  a 2",
        "  rare              4  b 2, c 2",
        "  not used          2  d1 1, d2 1",
        "  passed over      10",  # an empty folder counts as one
        "                    3  system, hidden and thumbnail files: b/@eaDir/",
        "                    5  not images: b/0.txt, b/1.txt, b/2.txt and 2 more",
        "                    1  class folders without images: empty/",
        "                    1  outside the class folders: loose.jpg",
    ]
    assert data.summary(quiet=True) == f"{root.name}: 2 base, 4 rare, 2 not used, 10 passed over"
    record = data.to_dict()
    assert record["base"] == {"a": 2} and record["not_used"] == {"d1": 1, "d2": 1}
    assert record["passed_over"]["not images"] == {
        "number": 5, "first": [f"b/{number}.txt" for number in range(NAMED)]
    }  # fmt: skip


@pytest.mark.parametrize("module", [papsmear, oct])
def test_folders_inside_a_class_are_read_alike(tmp_path, module):
    """As in own images."""
    for name in module.CLASSES:
        for inside in (".", "train", "patient 1/left"):
            save(tmp_path / name / inside / "0.png")
        (tmp_path / name / "notes.txt").touch()
    (tmp_path / "README").touch()
    (tmp_path / "other").mkdir()
    data = open_dataset(tmp_path)
    assert data.name == module.NAME
    assert set(data.base.counts().values()) == set(data.rare.counts().values()) == {3}
    name = module.RARE_CLASSES[0]
    assert {f"{name}/0.png", f"{name}/train/0.png", f"{name}/patient 1/left/0.png"} < {
        *data.rare.ids
    }
    assert data.passed_over["outside the class folders"] == ("other/", "README")
    assert len(data.passed_over["not images"]) == len(module.CLASSES)
    own = open_dataset(tmp_path, module.BASE_CLASSES, module.RARE_CLASSES)
    assert own.base.ids == data.base.ids


@pytest.mark.parametrize("module", [papsmear, oct])
def test_a_folder_that_differs_in_capitals_from_a_class(tmp_path, module):
    for name in module.CLASSES:
        save(tmp_path / name / "0.png")
    other = module.CLASSES[1].swapcase()
    save(tmp_path / other / "1.png")
    with pytest.raises(
        InputError, match=f"capitals .*'{other}' .folder; beside '{other.swapcase()}'"
    ):
        open_dataset(tmp_path)


def test_a_link_to_another_class(root):
    (root / "a" / "more").symlink_to(root / "b")
    with pytest.raises(InputError, match="a/more and .*b|b and .*a/more"):
        open_dataset(root, *CLASSES)


def test_ids_in_the_current_folder(root, monkeypatch):
    save(root / "a" / "ward" / "2.png")
    expected = open_dataset(root, *CLASSES)
    monkeypatch.chdir(root)
    found = open_dataset(".", *CLASSES)
    assert found.base.ids == expected.base.ids and found.base.paths[2].is_file()
    assert [i for i, _ in Listing().images_in(root / "a" / "..")] == sorted(
        expected.base.ids + expected.rare.ids
    )


def test_a_folder_whose_name_is_not_utf8_is_named(root):
    bad = os.fsencode(root) + b"/a/l\xe4sion"
    try:
        os.mkdir(bad)
    except OSError:
        pytest.skip("this disk takes no such names")
    open(bad + b"/good.jpg", "wb").close()
    with pytest.raises(InputError, match=r"folder name is not UTF-8.*a/l\\udce4sion") as error:
        open_dataset(root, *CLASSES)
    assert "good.jpg" not in str(error.value)
    os.rename(bad, os.fsencode(root) + b"/l\xe4sion")
    with pytest.raises(InputError, match=r"folder name is not UTF-8.*l\\udce4sion"):
        open_dataset(root, *CLASSES)


def test_other_names_that_are_not_utf8_are_named(root):
    try:
        open(os.fsencode(root) + b"/a/l\xe4sion.txt", "wb").close()
    except OSError:
        pytest.skip("this disk takes no such names")
    assert open_dataset(root, *CLASSES).passed_over == {"not images": (r"a/l\udce4sion.txt",)}
