"""test.py --tasks and --compare: many tasks, encoded once."""

import json

import pytest

from conftest import call, refused
from datasets import open_dataset
from datasets.episode import draw_task
from moco.evaluate import FrozenEncoder
from moco.scores import read_tasks


@pytest.fixture(scope="module")
def scored(chain, data, tmp_path_factory):
    """A folder with the scores of four tasks with two shots."""
    out = tmp_path_factory.mktemp("tasks")
    call("test", data, "--resume", chain.pretrained, "--k-shot", 2, "--tasks", 4, "-j", 0,
         "--output", out)  # fmt: skip
    return out


NAME = "tasks_lr_3way_2shot_4tasks"


def test_each_row_is_the_task_of_its_seed(chain, data, scored, tmp_path):
    rows = read_tasks(scored / f"{NAME}.csv")
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    assert len({row["task"] for row in rows}) == 4
    for seed in (0, 3):
        call("test", data, "--resume", chain.pretrained, "--k-shot", 2, "--seed", seed, "-j", 0,
             "--output", tmp_path)  # fmt: skip
        alone = json.loads((tmp_path / f"test_lr_3way_2shot_seed{seed}.json").read_text())
        row = rows[seed]
        for name, key in (("accuracy", "accuracy"), ("balanced_accuracy", "average"),
                          ("macro_f1", "macro_f1"), ("macro_auc", "macro_auc")):  # fmt: skip
            assert row[name] == alone[key], name
        for name, value in alone["per_class"].items():
            assert row[f"accuracy_{name}"] == value


def test_mean_of_the_rows_is_written_and_printed(chain, data, scored, capsys):
    rows = read_tasks(scored / f"{NAME}.csv")
    scores = json.loads((scored / f"{NAME}.json").read_text())["scores"]
    mean = sum(row["accuracy"] for row in rows) / 4
    assert scores["accuracy"]["mean"] == pytest.approx(mean) and scores["accuracy"]["tasks"] == 4
    before = {path: path.read_bytes() for path in scored.iterdir()}
    argv = [data, "--resume", chain.pretrained, "--k-shot", 2, "--tasks", 4, "--output", scored]
    call("test", *argv, "--compare", scored / f"{NAME}.csv")
    printed = capsys.readouterr().out
    assert "already done" in printed and f"{100 * mean:.2f} ±" in printed
    assert "+0.00 ± 0.00" in printed
    assert before == {path: path.read_bytes() for path in scored.iterdir()}


def test_settings_of_the_regression_apply(chain, data, scored, tmp_path):
    """--normalize, --augnum, --norm-statistics change the scores of the same tasks."""
    rows = read_tasks(scored / f"{NAME}.csv")
    argv = [data, "--resume", chain.pretrained, "--k-shot", 2, "--tasks", 4, "-j", 0]
    for number, more in enumerate(
        (["--augnum", 0], ["--normalize"], ["--norm-statistics", "image"])
    ):
        call("test", *argv, *more, "--output", tmp_path / str(number))
        other = read_tasks(tmp_path / str(number) / f"{NAME}.csv")
        assert [row["task"] for row in other] == [row["task"] for row in rows]
        assert [row["macro_auc"] for row in other] != [row["macro_auc"] for row in rows]


def test_drawn_classes_and_disjoint_lesions(chain, data, tmp_path):
    """Each task is that of draw_task; a class that it lacks is left empty."""
    call("test", data, "--resume", chain.pretrained, "--n-way", 2, "--k-shot", 1, "--tasks", 6,
         "--output", tmp_path, "-j", 0)  # fmt: skip
    rows = read_tasks(tmp_path / "tasks_lr_2way_1shot_6tasks.csv")
    rare = open_dataset(data).rare
    for row in rows:
        task = draw_task(rare, 2, 1, row["seed"])
        drawn = {name for name in row if name.startswith("accuracy_")}
        assert drawn == {f"accuracy_{name}" for name in task.classes}


def test_refusals(chain, data, scored, tmp_path, capsys, monkeypatch):
    def no(*argv):
        return refused(capsys, monkeypatch, "test", data, *argv, "--output", tmp_path)

    many = ["--resume", chain.pretrained, "--tasks", 3]
    assert "was trained for one task" in no("--resume", chain.student, "--tasks", 3)
    for flag, value in (("--seed", 1), ("--savedir", chain.labels), ("--predict", data)):
        assert f"leave out {flag}" in no(*many, flag, value)
    argv = ["--resume", chain.student, "--load-cla", "--predict", data, "--tasks", 3]
    assert "was trained for one task" in refused(capsys, monkeypatch, "test", *argv)  # no DATA
    assert "--compare requires --tasks" in no("--resume", chain.pretrained, "--compare", "x.csv")
    assert "--k-shot must be in" in no(*many, "--k-shot", 100)
    other = [*many, "--k-shot", 1, "--compare"]
    assert "different tasks of the seeds 0, 1, 2" in no(*other, scored / f"{NAME}.csv")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "is not a CSV file of test.py --tasks" in no(*other, tmp_path / "x.csv")


def test_other_groups_are_other_tasks(chain, data, tmp_path, capsys, monkeypatch):
    """Where they exclude query images."""
    ids = open_dataset(data).rare.ids
    table = tmp_path / "g.csv"
    argv = ["test", data, "--resume", chain.pretrained, "--k-shot", 1, "--tasks", 2, "-j", 0,
            "--groups", table, "--group-disjoint", "--output", tmp_path / "out"]  # fmt: skip
    for size in (1, 2):
        rows = [f"{i},{number // size}" for number, i in enumerate(ids)]
        table.write_text("\n".join(["image,group", *rows]))
        if size == 1:
            call(*argv)
    assert "would be overwritten (other tasks)" in refused(capsys, monkeypatch, *argv)


def test_tasks_without_query_images_end_before_the_work(chain, data, tmp_path, capsys, monkeypatch):
    """The message names the seed, and what helps."""
    rare = open_dataset(data).rare
    first = rare.classes[0]  # two patients, of whom one has a single image
    groups = ["p" if row.label == first else row.id for row in rare.rows()]
    lines = [f"{i},{group}" for i, group in zip(rare.ids, ["q", *groups[1:]])]
    (tmp_path / "g.csv").write_text("\n".join(["image,group", *lines]))
    argv = ["test", data, "--resume", chain.pretrained, "--k-shot", 2, "--tasks", 30, "-j", 0,
            "--groups", tmp_path / "g.csv", "--output", tmp_path]  # fmt: skip
    call(*argv)
    shared = json.loads((tmp_path / "tasks_lr_3way_2shot_30tasks.json").read_text())
    assert shared["shared_with_support"]["without_group"] == 0
    monkeypatch.setattr(FrozenEncoder, "embed", None)
    error = refused(capsys, monkeypatch, *argv, "--group-disjoint", "--overwrite")
    assert "seed " in error and "has no query images of" in error
    assert "fewer --k-shot leave some" in error and "--seed" not in error


def test_histogram(chain, data, scored, tmp_path):
    """A panel per number of shots, with the mean of each method in its legend."""
    call("test", data, "--resume", chain.pretrained, "--k-shot", 1, "--tasks", 3, "-j", 0,
         "--output", tmp_path / "more")  # fmt: skip
    words = ["--only", "tasks", "--format", "svg", "--out", tmp_path]
    call("plots.__main__", scored, tmp_path / "more", *words)
    drawn = (tmp_path / "tasks.svg").read_text()
    mean = json.loads((scored / f"{NAME}.json").read_text())["scores"]["accuracy"]["mean"]
    assert f"{100 * mean:.1f} ±" in drawn and "Tasks of 4" in drawn and "Tasks of 3" in drawn
    assert "1-shot" in drawn and "2-shot" in drawn


def test_broken_results_are_refused(scored, tmp_path, capsys, monkeypatch):
    for kind, content in ((".json", "{}"), (".csv", "a,b\n1,2\n")):
        folder = tmp_path / kind[1:]
        folder.mkdir()
        for path in scored.iterdir():
            (folder / path.name).write_text(content if path.suffix == kind else path.read_text())
        said = refused(capsys, monkeypatch, "plots.__main__", folder, "--out", tmp_path / "figures")
        assert "is not a" in said and "of test.py --tasks" in said
