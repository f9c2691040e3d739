"""Drawing, saving and loading tasks."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from datasets.episode import Task, draw_task, load_task, save_task
from datasets.images import describe, image_set


def rare_set(counts):
    rows = [(f"{c}{n}", None, c) for c, count in counts.items() for n in range(count)]
    return image_set("toy", tuple(counts), rows)


RARE = rare_set({"A": 9, "B": 20, "C": 12, "D": 7})


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 12), min_size=2, max_size=6),
    draw=st.data(),
    seed=st.integers(0, 2**31),
)
def test_disjoint_complete_and_of_the_right_size(counts, draw, seed):
    rare = rare_set({chr(65 + n): count for n, count in enumerate(counts)})
    n_way = draw.draw(st.integers(2, len(counts)))
    k_shot = draw.draw(st.integers(1, min(counts) - 1))
    task = draw_task(rare, n_way, k_shot, seed)
    support, query = task.support(rare), task.query(rare)
    assert task.n_way == n_way and set(support.counts().values()) == {k_shot}
    assert not set(support.ids) & set(query.ids)
    everything = {i for i in rare.ids if i[0] in task.classes}
    assert set(support.ids) | set(query.ids) == everything
    for part in (support, query):
        assert all(part.classes[label] == i[0] for i, label in zip(part.ids, part.labels))
    assert support.labels == tuple(n for n in range(n_way) for _ in range(k_shot))


def test_seeds():
    first = draw_task(RARE, 4, 5, seed=0)
    assert draw_task(RARE, 4, 5, seed=0) == first
    others = {draw_task(RARE, 4, 5, seed=s).support_ids for s in range(20)}
    assert len(others) == 20
    # The seed also draws the classes if n_way is smaller than their number.
    assert len({draw_task(RARE, 2, 1, seed=s).classes for s in range(40)}) == 6


def test_fewer_shots_are_a_subset_of_more():
    one, five = (draw_task(RARE, 4, k, seed=3).support_ids for k in (1, 5))
    assert all(ids[:1] == few for few, ids in zip(one, five))


def test_order_of_the_data_does_not_matter():
    shuffled = image_set(
        "toy",
        RARE.classes,
        [(i, None, RARE.classes[n]) for i, n in zip(RARE.ids, RARE.labels)][::-1],
    )
    assert draw_task(shuffled, 3, 2, 1) == draw_task(RARE, 3, 2, 1)


@pytest.mark.parametrize(
    "n_way, k_shot, message",
    [
        (5, 1, r"--n-way .*\[2, 4\], got 5: toy has A 9, B 20, C 12, D 7"),
        (1, 1, "--n-way .*got 1"),
        (4, 7, r"--k-shot .*\[1, 6\], got 7"),
        (4, 0, "--k-shot .*got 0"),
    ],
)
def test_impossible_tasks(n_way, k_shot, message):
    with pytest.raises(InputError, match=message):
        draw_task(RARE, n_way, k_shot, 0)


def test_a_class_of_one_image_is_refused():
    with pytest.raises(InputError, match="at least 2 images: toy has A 9, B 1"):
        draw_task(rare_set({"A": 9, "B": 1}), 2, 1, 0)


def test_a_class_without_query_images_is_refused():
    task = draw_task(RARE, 4, 6, 0)
    support = task.support(RARE).ids
    fewer = RARE.take([i for i in RARE.ids if i in support or not i.startswith("D")])
    with pytest.raises(InputError, match="no query images of 'D'"):
        task.query(fewer)


def test_saved_and_loaded(tmp_path):
    task = draw_task(RARE, 3, 2, 7)
    save_task(tmp_path, task, {"command": "x"})
    assert load_task(tmp_path) == task
    assert json.loads((tmp_path / "task.json").read_text())["made_by"] == {"command": "x"}
    assert Task.from_dict(task.to_dict()) == task


def test_unusable_files(tmp_path):
    with pytest.raises(InputError, match="no task at .*task.json"):
        load_task(tmp_path)
    task = draw_task(RARE, 3, 2, 7).to_dict()
    for broken in ("", "[1]", "{}", json.dumps({**task, "k_shot": 3})):
        (tmp_path / "task.json").write_text(broken)
        with pytest.raises(InputError, match=r"task\.json is invalid"):
            load_task(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", "ABC"), ("classes", ["A", "B", 3]), ("classes", ["A", "A", "B"]),
        ("classes", {}),
        ("k_shot", "2"), ("k_shot", 2.0), ("k_shot", True), ("k_shot", 0), ("k_shot", None),
        ("seed", None), ("seed", "0"), ("seed", float("nan")),
        ("support_ids", None), ("support_ids", [["A1", "A2"]] * 3),
        ("support_ids", ["A1", "B1", "C1"]),
        ("support_ids", [["\ud800", "A2"], ["B1", "B2"], ["C1", "C2"]]),
        ("rare", []), ("rare", {"dataset": "toy", "sha256": "x", "counts": {"A": "9"}}),
        ("excluded_ids", [None]), ("excluded_ids", "A1"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type(tmp_path, name, value):
    task = {**draw_task(RARE, 3, 2, 7).to_dict(), name: value}
    if value is None and name == "k_shot":
        task["support_ids"][0] = []
    (tmp_path / "task.json").write_text(json.dumps(task))
    with pytest.raises(InputError, match=r"task\.json is invalid: "):
        load_task(tmp_path)


def test_a_newer_format(tmp_path):
    save_task(tmp_path, draw_task(RARE, 3, 2, 7), {})
    values = json.loads((tmp_path / "task.json").read_text())
    for version in (values["format"] + 1, "new"):
        (tmp_path / "task.json").write_text(json.dumps({**values, "format": version}))
        with pytest.raises(InputError, match=f"format {version}"):
            load_task(tmp_path)


def test_a_set_without_a_support_image_is_refused():
    task = draw_task(RARE, 4, 2, 0)
    lost = task.support_ids[1][0]
    fewer = RARE.take([i for i in RARE.ids if i != lost])
    with pytest.raises(InputError, match=f"toy images: {lost}"):
        task.query(fewer)


def test_a_support_image_of_another_class_is_refused():
    task = draw_task(RARE, 3, 2, 0)
    first = task.support_ids[0][0]
    for other in RARE.classes:
        rows = [(i, None, other if i == first else i[0]) for i in RARE.ids]
        moved = image_set("toy", RARE.classes, rows)
        if other == task.classes[0]:
            assert task.support(moved) == task.support(RARE)
            continue
        with pytest.raises(InputError, match=f"another class .*: {first}"):
            task.query(moved)


LESIONS = {i: f"lesion {number // 3}" for number, i in enumerate(RARE.ids)}  # three images each


@pytest.mark.parametrize("seed", range(5))
def test_lesion_disjoint(seed):
    plain, strict = (draw_task(RARE, 3, 2, seed, lesions) for lesions in (None, LESIONS))
    assert strict.support_ids == plain.support_ids and plain.excluded_ids == ()
    support = {LESIONS[i] for i in strict.support(RARE).ids}
    query = strict.query(RARE)
    assert not support & {LESIONS[i] for i in query.ids}
    assert {*query.ids, *strict.excluded_ids} == set(plain.query(RARE).ids)
    assert all(LESIONS[i] in support for i in strict.excluded_ids)
    assert f"{len(strict.excluded_ids)} images excluded" in str(strict)
    assert Task.from_dict(strict.to_dict()) == strict


def test_an_image_without_a_lesion():
    with pytest.raises(InputError, match=f"1 of 48 have none: {RARE.ids[0]}"):
        draw_task(RARE, 3, 2, 0, {i: "x" for i in RARE.ids[1:]})


def test_rare_split_is_7_1_2_and_the_same_for_every_seed():
    tasks = [draw_task(RARE, None, k, seed, None, True) for k, seed in ((1, 0), (3, 1), (None, 2))]
    queries = [set(task.query(RARE).ids) for task in tasks]
    assert queries[0] == queries[1] == queries[2]
    whole = tasks[2]
    assert whole.k_shot is None and Task.from_dict(whole.to_dict()) == whole
    for name, ids, count in zip(whole.classes, whole.support_ids, RARE.counts().values()):
        asked = whole.query(RARE).counts()[name]
        assert abs(len(ids) - 0.7 * count) <= 0.5 and abs(asked - 0.2 * count) <= 1
    for task in tasks:
        support = set(task.support(RARE).ids)
        assert support <= set(whole.support(RARE).ids) and not support & queries[0]
        assert {*support, *queries[0], *task.excluded_ids} == set(RARE.ids)
    assert "all-shot" in str(whole)
    with pytest.raises(InputError, match=r"--k-shot .*\[1, 5\], got 6"):
        draw_task(RARE, None, 6, 0, None, True)  # the smallest class has 7


def test_task_files_without_excluded_ids():
    values = draw_task(RARE, 3, 2, 0).to_dict()
    del values["excluded_ids"]
    assert Task.from_dict(values).excluded_ids == ()


def test_numbers_as_class_names_are_told_from_counts():
    rare = rare_set({"3": 3, "4": 6})
    with pytest.raises(InputError, match=r"in \[1, 2\], got 5: toy has '3' 3, '4' 6"):
        draw_task(rare, None, 5, 0)
    assert describe(rare.fingerprint()).startswith("toy ('3' 3, '4' 6; ids ")
