"""The layout of the Herlev dataset."""

import pytest
from PIL import Image

from common.errors import InputError
from datasets import open_dataset, papsmear


@pytest.fixture
def folder(tmp_path):
    for name in papsmear.CLASSES:
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (5, 5)).save(tmp_path / name / f"{number}.BMP", format="BMP")
            Image.new("RGB", (5, 5)).save(tmp_path / name / f"{number}-d.bmp")
    return tmp_path


def test_base_and_rare_without_segmentations(folder):
    (folder / "normal_columnar" / "Thumbs.db").write_bytes(b"x")
    (folder / "normal_columnar" / "._0.bmp").write_bytes(b"x")
    data = open_dataset(folder)
    assert data.name == "papsmear"
    assert set(data.base.counts().values()) == {3} and len(data.base) == 12
    assert data.rare.classes == ("normal_columnar", "normal_superficiel", "normal_intermediate")
    assert data.rare.ids[:3] == tuple(f"normal_columnar/{n}.BMP" for n in range(3))
    assert len(data.passed_over["segmentations"]) == 21


@pytest.mark.parametrize(
    "image, mask", [("x.bmp", "X-D.BMP"), ("X.BMP", "x-D.bmp"), ("9-D.bmp", "9-D-d.png")]
)
def test_segmentations_in_whatever_capitals(folder, image, mask):
    for name in (image, mask):
        Image.new("RGB", (5, 5)).save(folder / "normal_columnar" / name)
    data = open_dataset(folder)
    assert data.rare.counts()["normal_columnar"] == 4
    assert f"normal_columnar/{image}" in data.rare.ids
    assert f"normal_columnar/{mask}" in data.passed_over["segmentations"]


def test_a_name_ending_in_d_without_its_image_is_an_image(folder):
    (folder / "normal_columnar" / "0.BMP").unlink()
    data = open_dataset(folder)
    assert data.rare.counts()["normal_columnar"] == 3
    assert [n for n in data.notes if "without their cell: normal_columnar/0-d.bmp" in n]


def test_missing_and_empty_folders(folder):
    for file in (folder / "normal_columnar").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no images in .*normal_columnar"):
        open_dataset(folder)
    (folder / "normal_columnar").rmdir()
    with pytest.raises(InputError, match="missing .*normal_columnar"):
        open_dataset(folder)
