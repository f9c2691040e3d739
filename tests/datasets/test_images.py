"""Reading, checking and identifying images."""

import os

import numpy as np
import pytest
from PIL import Image

from datasets import open_dataset
from datasets.files import InputError, atomic_write, listed, refuse_to_overwrite
from datasets.images import (
    ArrayImage,
    check_readable,
    describe,
    image_files,
    image_set,
    read_image,
)


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
    with pytest.raises(InputError, match="not among the toy images given: i9"):
        images.take(["i0", "i9"])


def test_fingerprint(images):
    print_ = images.fingerprint()
    assert print_["dataset"] == "toy" and print_["counts"] == {"a": 3, "b": 2}
    fewer = images.take(images.ids[1:]).fingerprint()
    assert fewer["sha256"] != print_["sha256"]
    assert images.take(images.ids[::-1]).fingerprint() == print_
    assert describe(print_).startswith("toy (a 3, b 2; ids ")


def test_sound_images_pass(images):
    check_readable(images)
    assert read_image(images.paths[0]).size == (50, 40)


def test_all_that_cannot_be_decoded_are_named(images):
    whole = images.paths[0].read_bytes()
    images.paths[0].write_bytes(whole[: len(whole) * 2 // 3])  # truncated
    images.paths[1].write_bytes(b"")
    images.paths[3].write_bytes(b"<html>404</html>")
    images.paths[4].unlink()
    with pytest.raises(InputError, match="4 of 5 images cannot be decoded") as error:
        check_readable(images)
    for position, path in enumerate(images.paths):
        assert (str(path) in str(error.value)) == (position != 2)
    for position in (0, 1, 3, 4):
        with pytest.raises(InputError, match="cannot read the image"):
            read_image(images.paths[position])


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (8, 8)).save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_not_clipped(tmp_path, kind):
    """A ramp over the whole range would come out white."""
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(kind)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match="x.tif: it has more than 8 bits a channel"):
        read_image(tmp_path / "x.tif")
    with pytest.raises(InputError, match="1 of 1 images .*more than 8 bits.*x.tif"):
        check_readable(image_set("x", ("a",), [("x", tmp_path / "x.tif", "a")]))


def test_names(tmp_path):
    """Hidden files and folders are passed over; a name that is not text is told."""
    for name in ("a.PNG", "b.txt", ".c.png", "d/e.jpg", ".ipynb_checkpoints/a-checkpoint.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in image_files(tmp_path)] == ["a.PNG"]
    assert [path.name for path in image_files(tmp_path, deep=True)] == ["a.PNG", "e.jpg"]
    try:
        open(os.fsencode(tmp_path) + b"/l\xe4sion.jpg", "wb").close()
    except OSError:
        pytest.skip("this disk takes no such names")
    with pytest.raises(InputError, match=r"not UTF-8; rename: 'l\\udce4sion.jpg'"):
        image_files(tmp_path)


def test_an_array_is_loaded_once(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", a=np.zeros((9, 8, 8, 3), np.uint8))
    loads, load = [], np.load
    monkeypatch.setattr(np, "load", lambda *how, **more: (loads.append(how), load(*how, **more))[1])
    rows = [(f"{n}", ArrayImage(tmp_path / "x.npz", "a", n), "x") for n in range(9)]
    check_readable(image_set("x", ("x",), rows))
    assert len(loads) == 1


def test_synthetic_looks_like_isic(data):
    found = open_dataset(data)
    assert len(found.base) == 35 and len(found.rare) == 25
    check_readable(found.base)
    check_readable(found.rare)


def test_atomic_write(tmp_path):
    path = tmp_path / "new" / "x"
    with atomic_write(path) as file:
        file.write(b"one")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"tw")
        raise RuntimeError
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_refuse_to_overwrite(tmp_path):
    refuse_to_overwrite([tmp_path / "x"], overwrite=False)
    (tmp_path / "x").touch()
    refuse_to_overwrite([tmp_path / "x"], overwrite=True)
    with pytest.raises(InputError, match="x would be overwritten.*--overwrite"):
        refuse_to_overwrite([tmp_path / "x"], overwrite=False)


def test_listed():
    assert listed("abc") == "a, b, c"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_an_error_from_a_worker_keeps_its_last_line():
    error = InputError("Caught InputError in worker.\nTraceback\n  x\nfiles.InputError: it broke\n")
    assert str(error) == "it broke"
    assert str(InputError("plain")) == "plain"
