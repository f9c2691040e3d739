"""Reading runs, pseudo labels and scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from plots import read
from trainer.checkpoint import CHECKPOINT

RARE = {"dataset": "toy", "counts": {"x": 9, "y": 9}, "sha256": "x"}


def log(folder: Path, *lines: object) -> Path:
    path = folder / read.LOG
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def result(checkpoint: str, seed: int, classifier: str = "direct", k_shot: int = 1) -> read.Result:
    task = {"classes": ["x", "y"], "k_shot": k_shot, "seed": seed, "rare": RARE}
    task["support_ids"] = [[f"{c}{n}" for n in range(k_shot)] for c in "xy"]
    scores = {"task": task, "classifier": classifier, "args": {"resume": checkpoint}}
    scores["confusion"] = [[3, 1], [0, 4]]
    return read.Result(Path(f"{checkpoint}/test_{seed}.json"), scores)


def test_log_of_a_resumed_run(tmp_path):
    path = log(
        tmp_path,
        {"stage": "moco", "start_epoch": 0, "task": None},
        {"epoch": 1, "loss": 3.0},
        {"epoch": 2, "loss": 9.0},
        {"stage": "moco", "start_epoch": 1, "task": None},
        {"epoch": 2, "loss": 2.0},
        '{"epoch": 3, "lo',
    )
    about, epochs = read.read_log(path)
    run = read.Run(tmp_path, about, epochs)
    assert run.line("loss") == {1: 3.0, 2: 2.0}
    assert run.task is None and run.temperatures() == {}


@pytest.mark.parametrize(("cos", "expected"), [(False, {3: 10}), (True, {})])
def test_drops(cos, expected):
    """A cosine falls by more than half at its end, too."""
    rates = {n: {"lr": rate} for n, rate in enumerate([0.1, 0.08, 0.008, 0.007], start=1)}
    found = read.Run(Path(), {"args": {"cos": cos}}, rates).drops()
    assert found == {n: pytest.approx(factor) for n, factor in expected.items()}


def test_log_of_a_restarted_run(tmp_path):
    first, second = ({"stage": "moco", "start_epoch": 0, "task": None} for _ in range(2))
    lines = [
        first,
        {"epoch": 1, "loss": 3},
        {"epoch": 2, "loss": 3},
        second,
        {"epoch": 1, "loss": 4},
    ]
    assert read.read_log(log(tmp_path, *lines))[1] == {1: {"epoch": 1, "loss": 4}}
    lines[-1]["loss"] = None
    assert read.read_log(log(tmp_path, *lines))[1] == {1: {"epoch": 1}}


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["nonsense", {"epoch": 1}], "line 1"),
        ([{"stage": "moco", "start_epoch": 0, "task": None}, {"loss": 1}, {"epoch": 2}], "line 2"),
        ([{"epoch": 1}], "log.jsonl"),
        ([{"stage": "moco", "start_epoch": 0, "task": 3}, {"epoch": 1}], "line 1"),
        ([{"stage": "moco", "start_epoch": 0, "task": None}, [1], {"epoch": 1}], "line 2"),
        ([{"stage": "moco", "start_epoch": 0, "task": None}, "\xff", {"epoch": 1}], "line 2"),
    ],
)
def test_invalid_log(tmp_path, lines, expected):
    with pytest.raises(InputError, match=expected):
        read.read_log(log(tmp_path, *lines))


RAGGED = {**result("a", 0).scores, "confusion": [[1, 2], [3]]}
INCOMPLETE = {**result("a", 0).scores, "classifier": None}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"task": 1}', '{"confusion": [[1]]}', json.dumps(RAGGED), json.dumps(INCOMPLETE)],
)
def test_invalid_result(tmp_path, text):
    (tmp_path / "test_x.json").write_text(text)
    with pytest.raises(InputError, match="test_x.json"):
        read.read_folders([tmp_path])


def test_empty_folders(tmp_path):
    with pytest.raises(InputError, match="nothing to draw"):
        read.read_folders([tmp_path])
    with pytest.raises(InputError, match="absent"):
        read.read_folders([tmp_path / "absent"])


def test_tasks_are_grouped():
    here = Path("scores")
    group = [(here, result(f"students/dic/seed{seed}", seed)) for seed in range(3)]
    key = (here, "direct", "1-shot", ("x", "y"))
    assert read.group_results(group) == {key: [one for _, one in group]}


def test_methods_are_not_grouped():
    """A folder with two methods' scores on the same tasks, and an encoder's."""
    here = Path("scores")
    found = read.group_results(
        [(here, result(f"students/{m}/seed{s}", s)) for m in ("dic", "ddl") for s in range(2)]
        + [(here, result(f"encoders/{m}", s, "lr")) for m in ("v1", "v2") for s in range(2)]
    )
    assert {(str(key[0]), key[1]): len(group) for key, group in found.items()} == {
        ("students/dic", "direct"): 2,
        ("students/ddl", "direct"): 2,
        ("encoders/v1", "lr"): 2,
        ("encoders/v2", "lr"): 2,
    }


def test_different_training_or_scoring_is_not_grouped():
    """Side by side, on different tasks: another correction, other images, other support copies."""
    for change in (
        {"training": {"correction": "dic"}},
        {"args": {"resume": "runs/b", "augnum": 0}},
        {"task": {**result("b", 1).scores["task"], "rare": {**RARE, "sha256": "y"}}},
        {"task": {**result("b", 1).scores["task"], "excluded_ids": ["y"]}},
    ):
        pair = [result("runs/a", 0), result("runs/b", 1)]
        pair[1].scores.update(change)
        found = read.group_results([(Path("runs"), one) for one in pair])
        assert [len(group) for group in found.values()] == [1, 1], change


def test_one_task_scored_twice_is_two_results(tmp_path):
    one, other = (result("runs/a", 0) for _ in range(2))
    other = read.Result(Path("elsewhere/test.json"), other.scores)
    assert len(read.group_results([(Path("runs"), one), (Path("runs"), other)])) == 2


def test_a_folder_named_twice_counts_once(tmp_path):
    (tmp_path / "test_1.json").write_text(json.dumps(result("runs/a", 0).scores))
    (group,) = read.read_folders([tmp_path, tmp_path / "."]).results.values()
    assert len(group) == 1


def test_a_run_named_in_two_ways_is_drawn_once(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    log(tmp_path / "run", {"stage": "moco", "start_epoch": 0, "task": None}, {"epoch": 1})
    monkeypatch.chdir(tmp_path)
    assert len(read.read_folders([Path("run"), tmp_path]).runs) == 1


def test_groups_of_several_folders_are_all_there():
    """Each folder has two methods on one task; or one folder is the group of another's parts."""
    found = read.group_results(
        [(Path(f"scores/{s}"), result(f"students/{m}/seed{s}", s))
         for s in range(2) for m in ("dic", "ddl")]
    )  # fmt: skip
    assert {str(key[0]): len(group) for key, group in found.items()} == {
        "students/dic": 2,
        "students/ddl": 2,
    }
    pair = [result(f"students/{m}/seed0", 0) for m in ("dic", "ddl")]
    for one in pair:
        one.scores["args"]["norm_statistics"] = "image"
    named = [(Path("students/dic"), result(f"students/dic/seed{s}", s)) for s in range(2)]
    found = read.group_results([*named, *((Path("by_image"), one) for one in pair)])
    assert sum(len(group) for group in found.values()) == 4


def test_the_checkpoint_that_was_scored(tmp_path):
    """The recorded folder or file; for a moved run, the folder of the scores."""
    scores = result(str(tmp_path / "run" / CHECKPOINT), 0).scores
    assert read.Result(tmp_path / "x.json", scores).checkpoint == tmp_path / "run"
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / CHECKPOINT).write_text("")
    moved = read.Result(tmp_path / "moved" / "test.json", scores)
    assert moved.checkpoint == tmp_path / "moved"


def test_shots_and_classifiers_are_not_grouped():
    group = [(Path("a"), result("a", 0, how, k)) for how in ("lr", "direct") for k in (1, 5)]
    assert [len(part) for part in read.group_results(group).values()] == [1] * 4


@pytest.mark.parametrize("text", [None, "image;truth\n1;x\n", "truth,prediction\nx,y\n"])
def test_invalid_predictions(tmp_path, text):
    one = result(str(tmp_path), 0)
    if text is not None:
        one.path.with_suffix(".csv").write_text(text)
    with pytest.raises(InputError, match="test_0.csv"):
        read.worst_mistakes(one, 3)


def test_mistakes(tmp_path):
    one = result(str(tmp_path), 0)
    one.path.with_suffix(".csv").write_text(
        "image,truth,prediction,p_x,p_y\na,x,x,.9,.1\nb,x,y,.2,.8\nc,y,x,.7,.3\nd,y,x,.95,.05\n"
    )
    assert [row["image"] for row in read.worst_mistakes(one, 2)] == ["d", "b"]
    assert [row["p"] for row in read.read_predictions(one)][0] == [0.9, 0.1]
    assert one.mistakes == 1


def test_most_similar():
    others = np.array([[0.0, 5.0], [3.0, 4.0], [0.0, 0.0], [1.0, 0.1]])
    row, cosine = read.most_similar(np.array([10.0, 0.0]), others)
    assert row == 3 and cosine == pytest.approx(1 / 1.01**0.5)


def test_short_names():
    assert read.short_names([Path("runs/a/seed0"), Path("runs/b/seed0")]) == ["a", "b"]
    assert read.short_names([Path("runs/a")]) == ["a"]
    assert read.short_names([Path("runs/a"), Path("runs/a")]) == ["a", "a"]
    assert read.short_names([Path("runs/a"), Path("runs/a/a")]) == ["runs/a", "runs/a/a"]
