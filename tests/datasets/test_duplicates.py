"""Copies of images: counted once, named, or refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import InputError
from datasets import Collection, duplicates, oct, open_dataset, papsmear, synthetic
from datasets.duplicates import REASON, without_copies
from datasets.episode import draw_task
from datasets.groups import with_groups
from datasets.images import ALLOW, image_set, other_images, require_same
from datasets.open import draw

CHOICE = ["common", "odd"], ["scar", "burn"]


def write(path, number):
    """Write image `number`: equal numbers are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(number)
    Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, "bmp")


@pytest.fixture
def folder(tmp_path):
    """Four images a class, all different; `spare` is not used."""
    for number, name in enumerate(["common", "odd", "scar", "burn", "spare"]):
        for image in range(4):
            write(tmp_path / "clinic" / name / f"{image}.bmp", 10 * number + image)
    return tmp_path / "clinic"


def opened(root, allow=False, choice=CHOICE):
    return without_copies(open_dataset(root, *choice), None, allow)


def test_without_copies_nothing_changes(folder):
    data = open_dataset(folder, *CHOICE)
    assert without_copies(data, None) == data and not data.rare.copies


def test_the_first_of_the_copies_in_a_class_stays(folder):
    before = opened(folder)
    for name in ("9.bmp", "new/5.bmp"):
        write(folder / "scar" / name, 21)
    write(folder / "common" / "00.bmp", 0)  # sorts before 1.bmp, after 0.bmp
    data = opened(folder)
    assert data.base == before.base and data.rare == before.rare
    names = data.passed_over[REASON]
    assert names == (
        "common/00.bmp (as common/0.bmp)",
        "scar/9.bmp (as scar/1.bmp)",
        "scar/new/5.bmp (as scar/1.bmp)",
    )
    assert f"3  {REASON}: {', '.join(names)}" in data.summary()
    assert data.to_dict()["passed_over"][REASON] == {"number": 3, "first": list(names)}


def test_allowed_copies_are_images_and_told(folder):
    write(folder / "scar" / "9.bmp", 21)
    write(folder / "burn" / "9.bmp", 22)  # in two classes
    data = opened(folder, allow=True)
    assert data.rare == open_dataset(folder, *CHOICE).rare and not data.passed_over
    assert data.rare.copies == {"scar/9.bmp": "scar/1.bmp", "scar/2.bmp": "burn/9.bmp"}
    assert "2 copies of another image, counted with --allow-duplicates: " in data.summary()
    assert "scar/9.bmp (as scar/1.bmp)" in data.summary()


@pytest.mark.parametrize("other", ["burn", "common"])
def test_one_content_in_two_classes_is_refused_with_both_paths(folder, other):
    write(folder / other / "x.bmp", 21)
    with pytest.raises(InputError) as error:
        opened(folder)
    for part in ("images that are in two classes (1)", folder / "scar" / "1.bmp",
                 folder / other / "x.bmp", "--allow-duplicates"):  # fmt: skip
        assert str(part) in str(error.value)


def test_a_content_in_a_class_not_used_is_told(folder):
    write(folder / "spare" / "x.bmp", 21)
    write(folder / "spare" / "y.bmp", 40)  # within the class: does not matter
    data = opened(folder)
    note = "images that are also in a class not used (1): scar/1.bmp ('spare': spare/x.bmp)"
    assert data.notes == (note,) and f"note: {note}" in data.summary()
    assert data.to_dict()["notes"] == [note]
    assert len(data.rare) == 8 and data.others.counts() == {"spare": 6}


def test_groups_of_copies(folder, tmp_path):
    """One without a group takes over that of its copy; two groups of one image are told."""
    for name in ("7.bmp", "8.bmp", "9.bmp"):
        write(folder / "scar" / name, 20 + int(name[0]) - 7)  # as 0, 1 and 2
    rows = ["scar/7.bmp,P", "scar/1.bmp,Q", "scar/8.bmp,Q", "scar/2.bmp,R", "scar/9.bmp,S"]
    (tmp_path / "g.csv").write_text("\n".join(["image,group", *rows]))
    data = without_copies(with_groups(open_dataset(folder, *CHOICE), tmp_path / "g.csv"), None)
    known = {i: data.groups[i] for i in data.rare.ids if i in data.groups}
    assert known == {"scar/0.bmp": "P", "scar/1.bmp": "Q", "scar/2.bmp": "R"}
    which = "images that are in two groups, which count as one (1)"
    assert data.notes == (f"{which}: scar/2.bmp (R) = scar/9.bmp (S)",)


def test_the_patients_of_two_copies_are_kept_apart_from_a_query_set(folder, tmp_path):
    """The content is in the support set under one of its two groups only."""
    write(folder / "scar" / "9.bmp", 20)  # as 0
    rows = ["scar/0.bmp,P", "scar/9.bmp,Q", "scar/1.bmp,Q", "scar/2.bmp,R", "scar/3.bmp,S"]
    rows += [f"burn/{n}.bmp,B{n}" for n in range(4)]
    (tmp_path / "g.csv").write_text("\n".join(["image,group", *rows]))
    data = without_copies(with_groups(open_dataset(folder, *CHOICE), tmp_path / "g.csv"), None)
    for seed in range(9):
        task = draw(data, None, 1, seed, group_disjoint=True)
        support, query = task.support(data.rare).ids, task.query(data.rare).ids
        together = {"scar/0.bmp", "scar/1.bmp"}
        assert not (together & {*support} and together & {*query})


def test_broken_files_are_no_copies(folder):
    for path in ("scar/x.bmp", "scar/y.bmp", "burn/x.bmp"):
        (folder / path).write_bytes(b"no image")
    for path in ("scar/u.bmp", "burn/u.bmp"):
        (folder / path).write_bytes(b"")
    assert opened(folder).rare == open_dataset(folder, *CHOICE).rare


def test_a_csv_file_that_lists_one_content_twice(folder):
    shutil.copy(folder / "scar" / "1.bmp", folder / "copy.bmp")
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in folder.glob("*/*.bmp")]
    table = folder / "t.csv"
    table.write_text("\n".join(["path,label", *rows, "copy.bmp,scar"]))
    data = opened(table)
    assert data.passed_over[REASON] == ("scar/1.bmp (as copy.bmp)",)
    table.write_text("\n".join(["path,label", *rows, "copy.bmp,burn"]))
    with pytest.raises(InputError, match=r"copy\.bmp \('burn'\) = .*scar/1\.bmp \('scar'\)"):
        opened(table)


def test_every_layout(tmp_path, smears):
    root = tmp_path / "isic"
    synthetic.make(root, base=34, rare=26, size=24, seed=0)
    data = open_dataset(root)
    one, two = data.rare.take(data.rare.ids[:2]).paths  # of one class
    two.write_bytes(one.read_bytes())
    assert len(without_copies(data, None).rare) == len(data.rare) - 1
    data.base.paths[0].write_bytes(one.read_bytes())
    with pytest.raises(InputError, match=r"in two classes \(1\): .*\('NV'\) = .*\('DF'\)"):
        without_copies(data, None)

    root = shutil.copytree(smears, tmp_path / "smears")
    first = root / papsmear.CLASSES[0] / "0.png"
    shutil.copy(first, first.with_name("z.png"))
    assert len(without_copies(open_dataset(root), None).base) == len(open_dataset(root).base) - 1

    for number, name in enumerate(oct.CLASSES):
        part = "train/" if name in oct.BASE_CLASSES else ""
        write(tmp_path / "oct" / f"{part}{name}" / "a.png", number)
    write(tmp_path / "oct" / "test" / "CNV" / "b.png", oct.CLASSES.index("CNV"))
    data = without_copies(open_dataset(tmp_path / "oct"), None)
    assert data.passed_over == {REASON: ("train/CNV/a.png (as test/CNV/b.png)",)}


def test_rows_of_a_medmnist_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3], np.uint8)[:, None]
    part = {"train": range(8), "val": [0, 4], "test": [3, 3]}

    def make(labels):
        arrays = {f"{name}_images": pixels[list(rows)] for name, rows in part.items()}
        arrays |= {f"{name}_labels": labels[list(rows)] for name, rows in part.items()}
        np.savez(tmp_path / "x.npz", **arrays)
        return opened(tmp_path / "x.npz", choice=(["0", "1"], ["2", "3"]))

    data = make(labels)
    assert data.passed_over[REASON] == (
        "test/000001 (as test/000000)",
        "train/000003 (as test/000000)",
        "val/000000 (as train/000000)",
        "val/000001 (as train/000004)",
    )
    assert (len(data.base), len(data.rare)) == (4, 4)
    pixels[5] = pixels[0]
    with pytest.raises(InputError, match=r"train_images\[0\] of .*\('0'\) = train_images\[5\]"):
        make(labels)


def test_a_copy_that_sorts_first_takes_a_support_images_place(folder):
    """The pair stays one support image; so does one that is excluded."""
    rare = opened(folder).rare
    groups = {i: i[0] + str(int(i[5]) // 2) for i in rare.ids}  # pairs of images
    task = draw_task(rare, 2, 1, 0, groups)
    for i in (*task.support_ids[0], *task.excluded_ids):
        shutil.copy(folder / i, folder / i.split("/")[0] / f"+{i[5]}.bmp")
    data = opened(folder)
    support, query = task.support(data.rare), task.query(data.rare)
    assert support.ids == (task.support_ids[0][0][:5] + "+" + task.support_ids[0][0][5:],
                           *task.support_ids[1])  # fmt: skip
    assert query.ids == task.query(rare).ids and not task.shared(data.rare, {})["copies"]
    # With both among the support images, drawn when copies counted, the advice is as before.
    allowed = opened(folder, allow=True).rare
    both = replace(task, k_shot=None, seed=None, support_ids=(
        (support.ids[0], *task.support_ids[0]), task.support_ids[1]
    ))  # fmt: skip
    assert len(both.support(allowed)) == 3
    with pytest.raises(InputError, match="add --allow-duplicates to count each"):
        both.support(data.rare)
    write(folder / "scar" / "#.bmp", 20 + int(task.support_ids[0][0][5]))  # a third one, first
    with pytest.raises(InputError, match="add --allow-duplicates to count each"):
        both.support(opened(folder).rare)


def test_a_fingerprint_made_with_copies_is_told_what_to_do(folder):
    write(folder / "scar" / "9.bmp", 21)
    with_copies = open_dataset(folder, *CHOICE).rare.fingerprint()
    rare, allowed = opened(folder).rare, opened(folder, allow=True).rare
    with pytest.raises(InputError, match="scar 5.*scar 4.*; .*add --allow-duplicates"):
        require_same(with_copies, rare, "x was trained on")
    require_same(with_copies, allowed, "x was trained on")
    with pytest.raises(InputError, match="; leave out --allow-duplicates"):
        require_same(rare.fingerprint(), allowed, "x was trained on")
    fewer = rare.take(rare.ids[1:])
    for others in ((with_copies, fewer), (fewer.fingerprint(), allowed)):
        assert "duplicates" not in other_images(*others) != ""
    with pytest.raises(InputError, match=f"images: scar/9.bmp; {ALLOW}"):
        rare.take(["scar/9.bmp"])


@settings(deadline=None, max_examples=100)
@given(
    contents=st.lists(st.integers(0, 20), min_size=8, max_size=30),
    relabelled=st.booleans(),
    k_shot=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_no_query_image_has_the_content_of_a_support_image(contents, relabelled, k_shot, seed):
    """Whatever the copies are; unless they are allowed, and then they are counted."""
    labels = ["AB"[(row if relabelled else content) % 2] for row, content in enumerate(contents)]
    content_of = {f"{label}{row}": contents[row] for row, label in enumerate(labels)}
    base, others = image_set("x", ("C",), [("C", "C", "C")]), image_set("x", (), [])
    data = Collection(
        "x", base, image_set("x", ("A", "B"), [(i, i, i[0]) for i in content_of]), others
    )

    def copies(paths, cache):
        rows_of = {}
        for row, path in enumerate(paths):
            rows_of.setdefault(content_of.get(path, path), []).append(row)
        return [rows for rows in rows_of.values() if len(rows) > 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "copies", copies)
        allow = len(set(zip(contents, labels))) > len(set(contents))
        if allow:
            with pytest.raises(InputError, match="in two classes"):
                without_copies(data, None)
        rare = without_copies(data, None, allow).rare
    assert allow or sorted(content_of[i] for i in rare.ids) == sorted(set(contents))
    try:
        task = draw_task(rare, 2, k_shot, seed)
        support, query = task.support(rare).ids, task.query(rare).ids
    except InputError:
        return
    both = {content_of[i] for i in query} & {content_of[i] for i in support}
    assert allow or not both
    assert task.shared(rare, {})["copies"] == sum(content_of[i] in both for i in query)


def test_a_copy_that_cannot_be_read_hides_no_others(folder):
    """The extension of a scanner's file is not read, whatever the bytes."""
    for name in ("0.svs", "9.bmp"):
        write(folder / "scar" / name, 21)
    data = opened(folder)
    assert data.passed_over[REASON] == ("scar/9.bmp (as scar/1.bmp)",)
    assert "scar/0.svs" in data.rare.ids  # and is told to be unreadable
