"""Saving, loading and validating pseudo labels."""

import dataclasses

import numpy as np
import pytest

from common.errors import InputError
from datasets.episode import draw_task, save_task
from datasets.images import image_set
from datasets.pseudo import (
    FORMAT,
    PSEUDO_FILE,
    PseudoLabels,
    load_pseudo_labels,
    save_pseudo_labels,
)

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
        source = labels.ids.index(name)
        assert np.array_equal(matched.probabilities[row], labels.probabilities[source])
        assert np.array_equal(matched.embeddings[row], labels.embeddings[source])
    assert matched.ids == BASE.ids and matched.sha256() == found.sha256()
    assert np.array_equal(found.hard(), labels.probabilities.argmax(axis=1))


def test_the_teachers_classifier_travels_along(tmp_path, labels):
    save(tmp_path, labels)
    assert load_pseudo_labels(tmp_path)[1].classifier is None  # as in older files
    f_c = np.arange(18, dtype=np.float32).reshape(3, 6)
    save(tmp_path, dataclasses.replace(labels, classifier=f_c))
    found = load_pseudo_labels(tmp_path)[1]
    assert np.array_equal(found.classifier, f_c) and found.sha256() == labels.sha256()
    assert np.array_equal(found.for_images(BASE).classifier, f_c)
    for wrong, message in ((f_c[:2], "shape 3×6"), (f_c + np.nan, "classifier contain NaN")):
        save(tmp_path, dataclasses.replace(labels, classifier=wrong))
        with pytest.raises(InputError, match=message):
            load_pseudo_labels(tmp_path)


def test_another_data_folder(tmp_path, labels):
    other = BASE.take(BASE.ids[1:])
    with pytest.raises(InputError, match=r"toy \(x 6, y 6.*toy \(x 5, y 6"):
        labels.for_images(other)


def test_hash_depends_on_the_labels(labels):
    other = dataclasses.replace(labels, probabilities=labels.probabilities[::-1].copy())
    assert labels.sha256() != other.sha256()
    assert labels.sha256() == dataclasses.replace(labels).sha256()


def test_another_task(tmp_path, labels):
    save(tmp_path, labels)
    save_task(tmp_path, draw_task(RARE, 3, 2, 1), {})
    with pytest.raises(InputError, match="seed 0.*task.json .*seed 1"):
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
def test_invalid_probabilities(tmp_path, labels, spoil):
    save(tmp_path, dataclasses.replace(labels, probabilities=spoil(labels.probabilities)))
    with pytest.raises(InputError, match="pseudo-label file .* is invalid"):
        load_pseudo_labels(tmp_path)


def test_unreadable(tmp_path, labels):
    with pytest.raises(InputError, match="no pseudo labels at"):
        load_pseudo_labels(tmp_path)
    save(tmp_path, labels)
    whole = (tmp_path / PSEUDO_FILE).read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes(255 - byte for byte in whole[half : half + 40])
    for content in (whole[:100], b"", b"hello", flipped + whole[half + 40 :]):
        (tmp_path / PSEUDO_FILE).write_bytes(content)
        with pytest.raises(InputError, match="pseudo-label file .* is invalid"):
            load_pseudo_labels(tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def rewrite(folder, **changes):
    """Replace arrays of the file in `folder`."""
    with np.load(folder / PSEUDO_FILE) as file:
        arrays = dict(file) | changes
    np.savez(folder / PSEUDO_FILE, **arrays)


def test_no_code_is_run(tmp_path, labels):
    save(tmp_path, labels)
    rewrite(tmp_path, ids=np.array([Malicious(tmp_path / "was here")] * 12, dtype=object))
    assert not (tmp_path / "was here").exists()
    with pytest.raises(InputError, match="is invalid: Object arrays cannot be"):
        load_pseudo_labels(tmp_path)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("ids", lambda x: x[[0, *range(11)]], "12 unique ids"),
        ("ids", lambda x: np.arange(12), "12 unique ids"),
        ("ids", lambda x: x[:, None], "12 unique ids|unhashable"),
        ("probabilities", lambda x: x.astype(complex), "12×3"),
        ("probabilities", lambda x: x.astype(str), "12×3"),
        ("probabilities", lambda x: x.astype(np.float64), "12×3"),
        ("embeddings", lambda x: x[:, :4], "12×5"),
        ("embeddings", lambda x: x[..., None], "12×5"),
        ("embeddings", lambda x: x * np.float32(np.inf), "embeddings contain NaN or Inf"),
        ("about", lambda x: np.array("[" * 100_000), "nested too deeply"),
        ("about", lambda x: np.array("[1]"), "not a JSON object"),
    ],
)
def test_other_arrays(tmp_path, labels, name, change, says):
    labels.about["teacher"]["moco_dim"] = 5
    save(tmp_path, labels)
    load_pseudo_labels(tmp_path)
    with np.load(tmp_path / PSEUDO_FILE) as file:
        changed = change(file[name])
    rewrite(tmp_path, **{name: changed})
    with pytest.raises(InputError, match=f"is invalid: .*({says})"):
        load_pseudo_labels(tmp_path)


def test_a_header_that_hides_values(tmp_path, labels):
    """The checksum is verified only at the end of an array, which is then never reached."""
    save(tmp_path, labels)
    rewrite(tmp_path)
    content = (tmp_path / PSEUDO_FILE).read_bytes()
    assert content.count(b"(12, 5), }") == 1
    (tmp_path / PSEUDO_FILE).write_bytes(content.replace(b"(12, 5), }", b"(12, 4), }"))
    with pytest.raises(InputError, match="embeddings|Bad CRC"):
        load_pseudo_labels(tmp_path)


def test_a_newer_format(tmp_path, labels):
    save(tmp_path, dataclasses.replace(labels, about={**labels.about, "format": FORMAT + 1}))
    with pytest.raises(InputError, match=r"labels\.npz .*format 2"):
        load_pseudo_labels(tmp_path)


def test_ids_that_do_not_match_the_fingerprint(labels):
    other = dataclasses.replace(labels, ids=("b99", *labels.ids[1:]))
    with pytest.raises(InputError, match=f"missing pseudo labels of {labels.ids[0]}"):
        other.for_images(BASE)


@pytest.mark.parametrize("name", ["task", "base", "teacher", "made_by"])
@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_missing_provenance(tmp_path, labels, name, value):
    save(tmp_path, dataclasses.replace(labels, about={**labels.about, name: value}))
    with pytest.raises(InputError, match=f"is invalid: missing {name}"):
        load_pseudo_labels(tmp_path)
