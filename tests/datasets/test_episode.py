"""Tasks: disjoint, seeded, whole, possible."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.episode import Task, draw_task, load_task, save_task
from datasets.files import InputError
from datasets.images import image_set


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
def test_disjoint_whole_and_of_the_right_size(counts, draw, seed):
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
    # With fewer classes than there are, the seed draws them too.
    assert len({draw_task(RARE, 2, 1, seed=s).classes for s in range(40)}) == 6


def test_fewer_shots_are_among_more():
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
        (5, 1, "--n_way 5 is not possible: toy has A 9, B 20, C 12, D 7; 2 to 4 would be"),
        (1, 1, "--n_way 1 is not possible"),
        (4, 7, "--k_shot 7 is not possible: .*; 1 to 6 would be"),
        (4, 0, "--k_shot 0 is not possible"),
    ],
)
def test_impossible_tasks(n_way, k_shot, message):
    with pytest.raises(InputError, match=message):
        draw_task(RARE, n_way, k_shot, 0)


def test_a_class_of_one_image_is_no_part_of_a_task():
    with pytest.raises(InputError, match="toy has A 9, B 1; a class in a task needs two images"):
        draw_task(rare_set({"A": 9, "B": 1}), 2, 1, 0)


def test_a_class_without_query_images_is_refused():
    task = draw_task(RARE, 4, 6, 0)
    support = task.support(RARE).ids
    fewer = RARE.take([i for i in RARE.ids if i in support or not i.startswith("D")])
    with pytest.raises(InputError, match="no images of D but the support set's"):
        task.query(fewer)


def test_saved_and_loaded(tmp_path):
    task = draw_task(RARE, 3, 2, 7)
    save_task(tmp_path, task, {"command": "x"})
    assert load_task(tmp_path) == task
    assert json.loads((tmp_path / "task.json").read_text())["made_by"] == {"command": "x"}
    assert Task.from_dict(task.to_dict()) == task


def test_unusable_files(tmp_path):
    with pytest.raises(InputError, match="no task here"):
        load_task(tmp_path)
    task = draw_task(RARE, 3, 2, 7).to_dict()
    for broken in ("", "[1]", "{}", json.dumps({**task, "k_shot": 3})):
        (tmp_path / "task.json").write_text(broken)
        with pytest.raises(InputError, match="is not a task file"):
            load_task(tmp_path)


def test_a_set_without_a_support_image_is_refused():
    task = draw_task(RARE, 4, 2, 0)
    lost = task.support_ids[1][0]
    fewer = RARE.take([i for i in RARE.ids if i != lost])
    with pytest.raises(InputError, match=f"not among the toy images given: {lost}"):
        task.query(fewer)
