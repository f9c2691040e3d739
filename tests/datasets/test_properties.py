"""Property-based tests of tables, tasks and images."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import InputError
from common.names import clean
from datasets import own
from datasets.cache import cached, pixels
from datasets.episode import Task, draw_task
from datasets.images import image_set, read_image, unreadable
from datasets.tables import table_rows

# Python's writer of CSV files does not quote \r.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")
VALUES = st.text(CHARACTERS, min_size=1, max_size=20).map(str.strip).filter(clean)


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8),
    order=st.permutations(["path", "label", "age"]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_tables_round_trip(rows, order, end, encoding):
    with TemporaryDirectory() as folder:
        table = Path(folder) / "t.csv"
        with open(table, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, order, lineterminator=end)
            writer.writeheader()
            writer.writerows({"path": path, "label": label, "age": ""} for path, label in rows)
        found = [row for _, row in table_rows(table, ("path", "label"), [])]
    unique = dict.fromkeys(rows)  # a repeated row counts once
    assert found == [{"path": path, "label": label, "age": ""} for path, label in unique]


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_invalid_tables_are_refused_in_one_line(content):
    with TemporaryDirectory() as folder:
        table = Path(folder) / "t.csv"
        table.write_bytes(b"path,label\n" + content)
        with pytest.raises(InputError) as error:
            own.find(table)  # all images are missing
        assert len(str(error.value).splitlines()) == 1


@settings(deadline=None, max_examples=200)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    n_way=st.none() | st.integers(-1, 6),
    k_shot=st.none() | st.integers(-1, 9),
    seed=st.integers(0, 2**31),
    rare_split=st.booleans(),
    images_a_lesion=st.none() | st.integers(1, 3),
)
def test_a_task_partitions_the_images_or_is_refused(
    counts, n_way, k_shot, seed, rare_split, images_a_lesion
):
    classes = tuple("ABCDE"[: len(counts)])
    ids = [f"{name}{n}" for name, count in zip(classes, counts) for n in range(count)]
    rare = image_set("toy", classes, [(i, None, i[0]) for i in ids])
    each = images_a_lesion
    lesions = each and {i: f"{i[0]} {int(i[1:]) // each}" for i in ids}
    try:
        task = draw_task(rare, n_way, k_shot, seed, lesions, rare_split)
        support, query = task.support(rare), task.query(rare)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        possible = 2 <= (len(counts) if n_way is None else n_way) <= len(counts)
        assert rare_split or lesions or k_shot is None or not (
            possible and 1 <= k_shot < min(counts)
        )  # fmt: skip
        return
    parts = [*support.ids, *query.ids, *task.excluded_ids]
    assert len(set(parts)) == len(parts)
    assert set(parts) == {i for i in ids if i[0] in task.classes}
    assert k_shot is None or set(support.counts().values()) == {k_shot}
    assert all(query.counts().values()) and Task.from_dict(task.to_dict()) == task
    if lesions:
        assert not {lesions[i] for i in support.ids} & {lesions[i] for i in query.ids}


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]


@settings(deadline=None, max_examples=120)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    mode=st.sampled_from(MODES),
    end=st.sampled_from(["png", "jpg", "tif", "bmp"]),
    orientation=st.integers(0, 9),
    target=st.integers(1, 40),
)
def test_an_image_is_rgb_or_refused(size, mode, end, orientation, target):
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{end}"
        exif = Image.Exif()
        exif[0x0112] = orientation
        try:
            Image.new(mode, size).save(path, exif=exif)
        except (OSError, ValueError):
            return  # not supported by this format
        images = image_set("x", ("x",), [("x", path, "x")])
        errors = unreadable(images.paths)
        try:
            image = read_image(path)
        except InputError as error:
            assert errors == {path: str(error)} and len(str(error).splitlines()) == 1
            assert mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
            return
        assert not errors and image.mode == "RGB" and sorted(image.size) == sorted(size)
        stored = pixels(cached(images, target, Path(folder) / "cache"))
        assert stored.shape == (1, target, target, 3) and stored.dtype == np.uint8
