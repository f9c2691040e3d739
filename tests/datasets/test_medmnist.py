import os

import numpy as np
import pytest

from common.errors import InputError
from datasets import isic2018, open_dataset
from datasets.images import check_readable, read_image
from moco.evaluate import encode
from models import build_encoder


def make(path, shape=(28, 28, 3), classes=7, **changes):
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 21), ("val", 7), ("test", 7)):
        arrays[f"{part}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    np.savez_compressed(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def test_dermamnist_is_split_like_isic(tmp_path):
    path = make(tmp_path / "dermamnist_64.npz", (64, 64, 3))
    data = open_dataset(path)
    assert data.name == "dermamnist_64"
    assert data.base.classes == isic2018.BASE_CLASSES and data.rare.classes == isic2018.RARE_CLASSES
    assert data.base.counts() == dict.fromkeys(isic2018.BASE_CLASSES, 5)
    with np.load(path) as file:
        for images in (data.base, data.rare):
            for image_id, path, label in zip(images.ids, images.paths, images.labels):
                part, row = image_id.split("/")
                number = file[f"{part}_labels"][int(row), 0]
                names = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")
                assert names[number] == images.classes[label]
                assert (np.asarray(read_image(path)) == file[f"{part}_images"][int(row)]).all()
    check_readable(data.base, data.rare)


def test_other_arrays_are_passed_over(tmp_path):
    data = open_dataset(make(tmp_path / "dermamnist.NPZ.npz", train_masks=np.zeros(3)))
    assert data.passed_over == {"other arrays": ("train_masks",)}


def test_images_reach_worker_processes(tmp_path):
    """Workers get the location of a row, not the array."""
    base = open_dataset(make(tmp_path / "dermamnist.npz")).base
    found = [encode(build_encoder("conv4").eval(), base, 32, workers=n).shape for n in (0, 2)]
    assert found == [(20, 128)] * 2


def test_numbered_classes_and_greyscale(tmp_path):
    path = make(tmp_path / "octmnist.npz", (28, 28), classes=4)
    with pytest.raises(InputError, match="classes '0', '1', '2', '3'; .*--base-classes"):
        open_dataset(path)
    data = open_dataset(path, ["3", "0"], ["1", "2"])
    assert data.base.classes == ("3", "0") and data.base.labels[0] == 0
    assert read_image(data.base.paths[0]).size == (28, 28)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_labels": None}, "missing val_labels"),
        ({"train_labels": np.full((21, 1), 9)}, r"\[0, 6\], got 9"),
        ({"train_labels": np.zeros((21, 14), int)}, "must be integers"),
        ({"train_labels": np.array([[{}]] * 21)}, "cannot be read"),  # needs a pickle
        (
            {"test_images": np.zeros((6, 28, 28, 3), np.uint8)},
            "has 6 images, .* 7 labels",
        ),
        (
            {"test_images": np.zeros((8, 28, 28, 3), np.uint8)},
            "has 8 images, .* 7 labels",
        ),
        ({"train_labels": np.zeros((22, 1), int)}, "train_images has 21 images, .* 22 labels"),
        ({"val_images": np.uint8(3)}, "val_images has 0 images"),
        ({"test_images": np.zeros((7, 28, 28, 3))}, "test_images"),
    ],
)
def test_other_contents(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        data = open_dataset(make(tmp_path / "dermamnist.npz", **changes))
        check_readable(data.base, data.rare)


def test_checksums_are_verified(tmp_path):
    """Those of labels and of images."""
    path = make(tmp_path / "dermamnist.npz")
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays)  # uncompressed, so that a flipped bit breaks nothing else
    content = path.read_bytes()
    labels, pixels = arrays["train_labels"].tobytes(), arrays["val_images"].tobytes()
    for array in (labels, pixels):
        at = content.index(array)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(InputError, match="Bad CRC"):
            data = open_dataset(path)
            check_readable(data.base, data.rare)


def test_not_an_npz(tmp_path):
    (tmp_path / "x.npz").write_text("not one")
    with pytest.raises(InputError, match="cannot be read as a MedMNIST file"):
        open_dataset(tmp_path / "x.npz")
    (tmp_path / "y.npz").mkdir()
    os.mkfifo(tmp_path / "z.npz")  # must not block
    for name in ("y.npz", "z.npz"):
        with pytest.raises(InputError, match="no dataset recognised"):
            open_dataset(tmp_path / name)


@pytest.mark.parametrize("shape", [(), (28,), (28, 28, 1), (28, 28, 28), (3, 28, 28)])
def test_arrays_that_are_not_images(tmp_path, shape):
    images = np.zeros((21, *shape), np.uint8)
    path = make(tmp_path / "dermamnist.npz", train_images=images)
    with pytest.raises(InputError, match="train_images must be of shape"):
        open_dataset(path)
