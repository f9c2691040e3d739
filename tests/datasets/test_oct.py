import pytest
from PIL import Image

from common.errors import InputError
from datasets import oct, open_dataset
from datasets.images import read_image


def make(root, parents=("train", "test", "val")):
    for parent in parents:
        for name in oct.BASE_CLASSES:
            (root / parent / name).mkdir(parents=True)
            Image.new("L", (8, 6), 90).save(root / parent / name / f"{name}-1.jpeg")
    for number, name in enumerate(oct.RARE_CLASSES):
        (root / name).mkdir()
        for i in range(number + 1):
            Image.new("RGB", (8, 6)).save(root / name / f"{i}.png")
    return root


def test_train_val_and_test_are_merged(tmp_path):
    data = open_dataset(make(tmp_path))
    assert data.name == "oct"
    assert data.base.counts() == dict.fromkeys(oct.BASE_CLASSES, 3)
    assert list(data.rare.counts().values()) == [1, 2, 3, 4, 5]
    assert data.base.ids[0] == "test/NORMAL/NORMAL-1.jpeg" and len(set(data.base.ids)) == 12
    assert read_image(data.base.paths[0]).mode == "RGB"  # from greyscale


def test_class_folders_at_the_top(tmp_path):
    assert open_dataset(make(tmp_path, ["."])).base.counts() == dict.fromkeys(oct.BASE_CLASSES, 1)


def test_a_missing_class(tmp_path):
    for file in (make(tmp_path) / "stargardt").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no images of stargardt"):
        open_dataset(tmp_path)
