"""The real images, where they are at hand."""

import pytest

from conftest import REPOSITORY
from datasets import open_dataset
from datasets.duplicates import without_copies
from datasets.episode import draw_task
from datasets.images import check_readable, read_image

SHARED = REPOSITORY.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no real images here")


def test_papsmear_is_the_whole_herlev_set():
    data = open_dataset(SHARED / "papsmear")
    assert list(data.base.counts().values()) == [182, 146, 197, 150]
    assert list(data.rare.counts().values()) == [98, 74, 70]
    check_readable(data.base)
    assert len(draw_task(data.rare, 3, 5, 0).query(data.rare)) == 242 - 15


@pytest.mark.parametrize("name", ["papsmear", "isic2018"])
def test_no_image_is_there_twice(name, tmp_path):
    data = open_dataset(SHARED / name)
    assert without_copies(data, tmp_path) == data


def test_isic_subset():
    data = open_dataset(SHARED / "isic2018")
    assert len(data.base) == 5661 and data.rare.counts() == {"DF": 30, "AKIEC": 92, "VASC": 40}
    check_readable(data.rare)
    assert read_image(data.rare.paths[0]).mode == "RGB"
