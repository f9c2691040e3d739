"""Reading, checking and identifying images."""

import errno
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common.errors import InputError, refusing
from conftest import REPOSITORY
from datasets import images as module
from datasets import open_dataset
from datasets.content import digests
from datasets.images import (
    ArrayImage,
    check_readable,
    describe,
    image_set,
    read_image,
    unreadable,
    without_unreadable,
)
from datasets.listing import Listing
from datasets.open import open_unlabelled


@pytest.fixture
def images(tmp_path):
    rows = []
    for number in range(5):
        path = tmp_path / f"{number}.jpg"
        Image.effect_noise((50, 40), 60).convert("RGB").save(path)
        rows.append((f"i{number}", path, "ab"[number % 2]))
    return image_set("toy", ("a", "b"), rows)


def test_image_set_is_sorted_and_filtered(images):
    assert images.ids == ("i0", "i2", "i4", "i1", "i3")
    assert images.labels == (0, 0, 0, 1, 1)
    assert images.counts() == {"a": 3, "b": 2}
    only_b = image_set("toy", ("b",), [("x", None, "b"), ("y", None, "a")])
    assert only_b.ids == ("x",) and only_b.labels == (0,)


def test_take(images):
    found = images.take(["i3", "i0"], ["b", "a"])
    assert found.ids == ("i3", "i0") and found.labels == (0, 1)
    assert found.paths[0].name == "3.jpg"
    with pytest.raises(InputError, match="toy images: i9"):
        images.take(["i0", "i9"])


def test_postscript_is_refused(tmp_path):
    """Pillow would run it in Ghostscript."""
    path = tmp_path / "x.jpg"
    Image.new("RGB", (9, 9)).save(path, format="EPS")
    with pytest.raises(InputError, match="x.jpg: not an image"):
        read_image(path)
    for other in ("GIF", "WEBP", "PPM"):
        Image.new("RGB", (9, 9)).save(path, format=other)
        assert read_image(path).size == (9, 9)


def test_fingerprint(images):
    print_ = images.fingerprint()
    assert print_["dataset"] == "toy" and print_["counts"] == {"a": 3, "b": 2}
    fewer = images.take(images.ids[1:]).fingerprint()
    assert fewer["sha256"] != print_["sha256"]
    assert images.take(images.ids[::-1]).fingerprint() == print_
    assert describe(print_).startswith("toy (a 3, b 2; ids ")


def test_valid_images_pass(images):
    check_readable(images)
    assert read_image(images.paths[0]).size == (50, 40)


def test_all_unreadable_images_are_listed(images):
    whole = images.paths[0].read_bytes()
    images.paths[0].write_bytes(whole[: len(whole) * 2 // 3])  # truncated
    images.paths[1].write_bytes(b"")
    images.paths[3].write_bytes(b"<html>404</html>")
    images.paths[4].unlink()
    with pytest.raises(InputError, match="4 of 5 images cannot be read") as error:
        check_readable(images)
    for position, path in enumerate(images.paths):
        assert (str(path) in str(error.value)) == (position != 2)
    for position in (0, 1, 3, 4):
        with pytest.raises(InputError, match=f"{images.paths[position].name}: "):
            read_image(images.paths[position])


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (8, 8)).save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_not_clipped(tmp_path, kind):
    """Clipping would turn a ramp over the whole range white."""
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(kind)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match="x.tif: more than 8 bits"):
        read_image(tmp_path / "x.tif")
    with pytest.raises(InputError, match="1 of 1 images .*x.tif: more than 8 bits"):
        check_readable(image_set("x", ("a",), [("x", tmp_path / "x.tif", "a")]))


def test_checksums_of_png_are_verified(tmp_path):
    """A flipped bit in uncompressed pixels is detected."""
    path = tmp_path / "x.png"
    Image.effect_noise((20, 20), 60).save(path, compress_level=0)
    whole = path.read_bytes()
    at = whole.index(b"IDAT") + 60
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match="x.png: broken PNG file"):
        read_image(path)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_several_channels_are_refused_too(tmp_path, kind, channels):
    """Pillow would return the upper 8 bits. It cannot write such PNG files."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(8 * channels)) * 4)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
    (tmp_path / "x.png").write_bytes(png + chunk(b"IEND", b""))
    assert Image.open(tmp_path / "x.png").mode[:3] == "RGB"
    with pytest.raises(InputError, match="x.png: more than 8 bits"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("end", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_are_upright_as_exif_says(tmp_path, end, orientation):
    """0 and 9 are undefined; 1 is upright."""
    picture = Image.new("RGB", (32, 16), "white")
    picture.paste("red", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"x.{end}", exif=exif)
    picture.save(tmp_path / "x.png", exif=exif)
    same = "png" if end == "tif" else end  # old versions of Pillow rotate a TIFF twice
    expected = ImageOps.exif_transpose(Image.open(tmp_path / f"x.{same}")).convert("RGB")
    found = read_image(tmp_path / f"x.{end}")
    assert found.size == expected.size and found.tobytes() == expected.tobytes()
    assert (found.size == (32, 16)) == (orientation not in (5, 6, 7, 8))


def test_a_broken_orientation_is_ignored(tmp_path):
    Image.new("RGB", (32, 16)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0broken")
    assert read_image(tmp_path / "x.jpg").size == (32, 16)


def test_non_files_are_reported(tmp_path):
    """Named pipes do not block; links to images are followed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    folder = tmp_path / "images"
    (folder / "folder.png").mkdir(parents=True)
    os.mkfifo(folder / "pipe.png")
    (folder / "image.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "text.png").symlink_to(__file__)
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    images, _, _ = open_unlabelled([folder], quiet=True)
    errors = unreadable(images.paths)
    assert [path.name for path in images.paths if path not in errors] == ["image.png"]
    for name, why in {
        "pipe": "not a file", "text": "not an image",
        "dangling": "No such file or directory",
    }.items():  # fmt: skip
        assert errors[folder / f"{name}.png"] == f"{folder / name}.png: {why}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_no_permission_to_read(images):
    images.paths[1].chmod(0)
    with pytest.raises(InputError, match=r"1 of 5 images .*2\.jpg: Permission denied"):
        check_readable(images)


def test_links_to_folders(tmp_path):
    """Links are followed, but no folder is read twice or in a loop."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").touch()
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    assert Listing().images_in(folder) == [("a/0.png", str(folder / "a" / "0.png"))]
    for target in (tmp_path / "elsewhere", folder):
        (folder / "b").symlink_to(target)
        with pytest.raises(InputError, match="class.* same folder"):
            Listing().images_in(folder)
        (folder / "b").unlink()


def test_large_images(tmp_path, monkeypatch):
    """Pillow's warnings are silenced; images above its limit are refused."""
    Image.new("L", (200, 100)).save(tmp_path / "x.png")
    script = "from PIL import Image; from datasets.images import read_image; import sys\n"
    script += "Image.MAX_IMAGE_PIXELS = 15_000\nread_image(sys.argv[1])"
    command = [sys.executable, "-c", script, tmp_path / "x.png"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    with pytest.raises(InputError, match="x.png: Image size .* exceeds limit"):
        read_image(tmp_path / "x.png")


def test_unreadable_images_are_skipped(images, capsys):
    assert without_unreadable(images) == (images, {}) and capsys.readouterr().out == ""
    images.paths[1].write_bytes(b"")
    images.paths[3].unlink()
    left, errors = without_unreadable(images)
    assert list(errors) == ["i2", "i1"] and errors["i2"] == "not an image"
    assert left == images.take(["i0", "i4", "i3"]) and left.counts() == {"a": 2, "b": 1}
    (note,) = capsys.readouterr().out.splitlines()
    assert "2 of 5 images of a, b: " in note
    assert f"{images.paths[1]}: not an image" in note and f"{images.paths[3]}: No such" in note
    for path in left.paths:
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 3 images can be read: .*not an image"):
        without_unreadable(left)
    assert len(without_unreadable(left, may_be_empty=True)[1]) == 3


def test_names(tmp_path):
    """Hidden files and folders are passed over; names that are not UTF-8 are refused."""
    for name in ("a.PNG", "b.txt", ".c.png", "d/e.jpg", ".ipynb_checkpoints/a-checkpoint.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listing = Listing()
    assert [i for i, _ in listing.images_in(tmp_path, "x")] == ["x/a.PNG", "x/d/e.jpg"]
    assert listing.passed_over == {
        "system, hidden and thumbnail files": ["x/.ipynb_checkpoints/", "x/.c.png"],
        "not images": ["x/b.txt"],
    }
    try:
        open(os.fsencode(tmp_path) + b"/l\xe4sion.jpg", "wb").close()
    except OSError:
        pytest.skip("this disk takes no such names")
    with pytest.raises(InputError, match=r"not UTF-8.*'l\\udce4sion.jpg'"):
        Listing().images_in(tmp_path)


def test_an_array_is_loaded_once(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", a=np.zeros((9, 8, 8, 3), np.uint8))
    loads, read = [], module.read_array
    monkeypatch.setattr(module, "read_array", lambda *args: (loads.append(args), read(*args))[1])
    rows = [(f"{n}", ArrayImage(tmp_path / "x.npz", "a", n), "x") for n in range(9)]
    check_readable(image_set("x", ("x",), rows))
    assert len(loads) == 1


def test_synthetic_data_have_the_layout_of_isic(data):
    found = open_dataset(data)
    assert len(found.base) == 35 and len(found.rare) == 25
    check_readable(found.base)
    check_readable(found.rare)


@pytest.mark.parametrize("error", [
    OSError(errno.EMFILE, "Too many open files"), MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"), OSError("out of memory when reading file"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
])  # fmt: skip
def test_failures_of_the_machine_are_not_the_images_fault(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("datasets.images.Image.open", fail)
    kind = OSError if "open files" in str(error) else MemoryError
    with pytest.raises(kind, match="x.png, which may be too large: |open files"):
        read_image(tmp_path / "x.png")
    with pytest.raises(type(error)), refusing("x.png is no CSV file; remove it"):
        fail()
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(kind):  # without its content a copy would not be known as one
        digests([tmp_path / "x.png"], None)


FRAMES = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "tif": "TIFF"}


@pytest.mark.parametrize("extension", FRAMES)
def test_several_frames_are_refused(tmp_path, extension):
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime"))
    path = tmp_path / f"x.{extension}"
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(InputError, match=f"{FRAMES[extension]} with 3 pages or frames; export"):
        read_image(path)
    first.save(path, save_all=True)
    assert read_image(path).size == (8, 8)


def test_previews_in_a_tiff_file_are_no_pages(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    preview = image.resize((2, 2))
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    image.save(tmp_path / "x.tif", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "x.tif") as stored:
        assert stored.n_frames == 2
    assert read_image(tmp_path / "x.tif").size == (8, 8)


@pytest.mark.parametrize(("largest", "width"), [(65535, 2), (1023, 2), (255, 1), (15, 1)])
def test_deep_ppm_files_are_refused(tmp_path, largest, width):
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P6\n2 2\n%d\n" % largest + bytes([0, 1] * 6 * width)[: 12 * width])
    if largest <= 255:
        assert read_image(path).size == (2, 2)
    else:
        with pytest.raises(InputError, match="more than 8 bits"):
            read_image(path)


def test_deep_jpeg_2000_files_are_refused(tmp_path):
    path = tmp_path / "x.jp2"
    Image.new("RGB", (8, 8), "red").save(path)
    assert read_image(path).size == (8, 8)
    content = bytearray(path.read_bytes())
    size = content.index(b"\xff\x4f\xff\x51") + 42
    content[size : size + 9 : 3] = bytes([15] * 3)  # 16 bits of each component
    path.write_bytes(content)
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image(path)


def test_paths_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(InputError, match=r"not UTF-8; rename: .*\\udcff\.png"):
        open_unlabelled([path])
