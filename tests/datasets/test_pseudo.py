"""The pseudo-label file."""

import dataclasses
import json

import numpy as np
import pytest

from datasets.episode import draw_task, save_task
from datasets.files import InputError
from datasets.images import image_set
from datasets.pseudo import PSEUDO_FILE, PseudoLabels, load_pseudo_labels, save_pseudo_labels

BASE = image_set("toy", ("x", "y"), [(f"b{n:02}", None, "xy"[n % 2]) for n in range(12)])
RARE = image_set("toy", ("A", "B", "C"), [(f"{c}{n}", None, c) for c in "ABC" for n in range(4)])


@pytest.fixture
def labels():
    generator = np.random.default_rng(0)
    order = generator.permutation(12)
    task = draw_task(RARE, 3, 2, 0)
    return PseudoLabels(
        ids=tuple(BASE.ids[row] for row in order),
        probabilities=generator.dirichlet([1, 1, 1], 12).astype(np.float32),
        embeddings=generator.normal(size=(12, 5)).astype(np.float32),
        about={"task": task.to_dict(), "base": BASE.fingerprint(), "teacher": {}, "made_by": {}},
    )


def save(folder, labels):
    save_task(folder, draw_task(RARE, 3, 2, 0), {})
    save_pseudo_labels(folder, labels)


def test_matched_by_id(tmp_path, labels):
    save(tmp_path, labels)
    task, found = load_pseudo_labels(tmp_path)
    assert task == draw_task(RARE, 3, 2, 0)
    matched = found.for_images(BASE)
    for row, name in enumerate(BASE.ids):
        there = labels.ids.index(name)
        assert np.array_equal(matched.probabilities[row], labels.probabilities[there])
        assert np.array_equal(matched.embeddings[row], labels.embeddings[there])
    assert matched.ids == BASE.ids and matched.sha256() == found.sha256()
    assert np.array_equal(found.hard(), labels.probabilities.argmax(axis=1))


def test_another_data_folder(tmp_path, labels):
    other = BASE.take(BASE.ids[1:])
    with pytest.raises(InputError, match=r"are of toy \(x 6, y 6.*holds toy \(x 5, y 6"):
        labels.for_images(other)


def test_hash_tells_labels_apart(labels):
    other = dataclasses.replace(labels, probabilities=labels.probabilities[::-1].copy())
    assert labels.sha256() != other.sha256()
    assert labels.sha256() == dataclasses.replace(labels).sha256()


def test_another_task(tmp_path, labels):
    save(tmp_path, labels)
    save_task(tmp_path, draw_task(RARE, 3, 2, 1), {})
    with pytest.raises(InputError, match="seed 0.* is not of the task in task.json .*seed 1"):
        load_pseudo_labels(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p[:-1],
        lambda p: p[:, :2],
        lambda p: np.where(p == p[3, 1], np.nan, p),
        lambda p: p * 1.1,
        lambda p: p - 0.5,
    ],
)
def test_what_are_not_probabilities(tmp_path, labels, spoil):
    save(tmp_path, dataclasses.replace(labels, probabilities=spoil(labels.probabilities)))
    with pytest.raises(InputError, match="is not a pseudo-label file"):
        load_pseudo_labels(tmp_path)


def test_unreadable(tmp_path, labels):
    with pytest.raises(InputError, match="no pseudo labels here"):
        load_pseudo_labels(tmp_path)
    save(tmp_path, labels)
    whole = (tmp_path / PSEUDO_FILE).read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes(255 - byte for byte in whole[half : half + 40])
    for content in (whole[:100], b"", b"hello", flipped + whole[half + 40 :]):
        (tmp_path / PSEUDO_FILE).write_bytes(content)
        with pytest.raises(InputError, match="is not a pseudo-label file"):
            load_pseudo_labels(tmp_path)


def test_no_pickles(tmp_path, labels):
    save(tmp_path, labels)
    with open(tmp_path / PSEUDO_FILE, "wb") as file:
        np.savez(
            file,
            ids=np.array([{"a": 1}], dtype=object),
            probabilities=labels.probabilities,
            embeddings=labels.embeddings,
            about=np.array(json.dumps(labels.about)),
        )
    with pytest.raises(InputError, match="is not a pseudo-label file"):
        load_pseudo_labels(tmp_path)
