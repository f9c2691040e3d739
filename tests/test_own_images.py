"""User-provided images through all stages; lesion-disjoint tasks and the rare split."""

import csv
import json
import shutil

import numpy as np
import pytest

from baselines import scratch
from conftest import TINY, call, refused
from datasets import isic2018, open_dataset, synthetic
from datasets.episode import Task, load_task
from datasets.pseudo import load_pseudo_labels
from moco.checkpoint import load_checkpoint

BASE, RARE = ["nevus", "melanoma", "keratosis"], ["scar", "vessel"]


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Synthetic lesions as class folders, with other names and fewer classes."""
    names = dict(zip(("NV", "MEL", "BKL", "DF", "VASC"), [*BASE, *RARE]))
    root = tmp_path_factory.mktemp("clinic")
    for image_id, path, label, *_ in isic2018.find(data).rows:
        if label in names:
            (root / names[label]).mkdir(exist_ok=True)
            shutil.copy(path, root / names[label] / f"{image_id}.jpg")
    return root


@pytest.mark.parametrize("kind", ["folders", "csv"])
def test_from_own_images_to_predictions(kind, folder, tmp_path):
    source = folder
    if kind == "csv":
        source = tmp_path / "images.csv"
        with open(source, "w", newline="") as file:
            csv.writer(file).writerows(
                [("path", "label"), *((path, path.parent.name) for path in folder.rglob("*.jpg"))]
            )
    a, labels, d = tmp_path / "a", tmp_path / "labels", tmp_path / "d"
    classes = ["--base-classes", *BASE, "--rare-classes", *RARE]
    call("main_moco", source, *classes, "--model_path", a, *TINY, "--epochs", 1)
    # Later stages read the classes from the checkpoint.
    call("generate_pseudo", "--datadir", source, "--resume", a, "--savedir", labels,
         "--k_shot", 2, "-j", 0)  # fmt: skip
    call("main_distill", source, "--savedir", labels, "--model_path", d, "-j", 0)
    call("test", source, "--resume", d, "--load_cla", "-j", 0)
    call("test", source, "--resume", a, "--k_shot", 2, "-j", 0)
    scores = json.loads((d / "test_direct_2way_2shot_seed0.json").read_text())
    assert list(scores["per_class"]) == RARE == scores["args"]["rare_classes"]
    assert load_checkpoint(d)["args"]["base_classes"] == BASE
    assert set(load_checkpoint(d)["base"]["counts"]) == set(BASE)
    out = tmp_path / "out"
    call(
        "test", "--resume", d, "--load_cla", "--predict", folder / "scar", "--output", out, "-j", 0
    )
    with open(out / "predict_scar_direct_2way_2shot_seed0.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list((folder / "scar").iterdir()))
    assert set(rows[0]) == {"image", "prediction", *(f"p_{name}" for name in RARE)}
    tsne = ["--only", "tsne", "--out", tmp_path / "figures", "-j", 0]
    call("plots.__main__", d, "--data", source, *tsne)


def test_the_classes_come_from_the_task_in_savedir(folder, tmp_path, capsys):
    a, labels = tmp_path / "a", tmp_path / "labels"
    first = ["--base-classes", *BASE[:2], "--rare-classes", *RARE]
    call("main_moco", folder, *first, "--model_path", a, *TINY, "--epochs", 0)
    more = ["--base-classes", BASE[0], "--rare-classes", *RARE, BASE[1]]
    argv = [folder, "--resume", a, "--savedir", labels, "-j", 0]
    call("generate_pseudo", *argv, *more, "--k_shot", 2)
    call("test", *argv)
    scores = json.loads((a / "test_lr_3way_2shot_seed0.json").read_text())
    assert list(scores["per_class"]) == [*RARE, BASE[1]] == scores["args"]["rare_classes"]
    assert scores["args"]["base_classes"] == BASE[:1]
    call("test", *argv, *more)  # named again: the same
    assert "already done" in capsys.readouterr().out


def test_rare_classes_cost_the_later_stages_only(folder, tmp_path, capsys, monkeypatch):
    """Stage (a) depends on the base images: rare classes may be changed, dropped and enlarged."""
    a, own = tmp_path / "a", tmp_path / "own"
    shutil.copytree(folder, own)
    classes = ["--base-classes", *BASE[:2], "--rare-classes"]
    argv = ["main_moco", own, "--model_path", a, *TINY, *classes]
    call(*argv, *RARE, "--epochs", 1)
    look = next(iter(synthetic.LOOKS.values()))
    image = synthetic.draw_lesion(look, np.random.default_rng(5), 40)
    image.save(own / "scar" / "new.png")  # enlarged
    call(*argv, "scar", "vessel", "keratosis", "--epochs", 1)
    call(*argv, "vessel", "keratosis", "--epochs", 2)  # "scar" is not used any more
    starts = [json.loads(line) for line in (a / "log.jsonl").read_text().splitlines()]
    assert [line["start_epoch"] for line in starts if "stage" in line][-1] == 1  # resumed
    assert load_checkpoint(a)["epoch"] == 2
    labelling = ["generate_pseudo", "--datadir", own, "--resume", a, "--k_shot", 2, "-j", 0]
    other = ["--rare-classes", "vessel", "keratosis"]
    call(*labelling, "--savedir", tmp_path / "labels", *other)
    assert load_task(tmp_path / "labels").classes == ("vessel", "keratosis")
    call("main_distill", own, "--savedir", tmp_path / "labels", "--model_path", tmp_path / "d",
         "-j", 0)  # fmt: skip
    capsys.readouterr()
    call("test", own, "--resume", a, "--k_shot", 2, "-j", 0, *other)
    assert "was trained on" not in capsys.readouterr().out
    # A base class that becomes rare has been seen; a base class less is another base set.
    seen = ["--base-classes", "nevus", "--rare-classes", "melanoma", "vessel"]
    call(*labelling, "--savedir", tmp_path / "seen", *seen)
    printed = capsys.readouterr().out
    assert "was trained on the images of 'melanoma', now a rare class" in printed
    error = refused(capsys, monkeypatch, *argv[: -len(classes)], *seen)
    assert "was trained on own (nevus" in error and "melanoma" in error
    # A student's classes are those of its task.
    for command in (
        ["main_distill", own, "--savedir", tmp_path / "labels", "--model_path", tmp_path / "e"],
        ["test", own, "--resume", tmp_path / "d"],
    ):
        error = refused(capsys, monkeypatch, *command, "--rare-classes", *RARE)
        assert "the task has the class 'keratosis'" in error and "'scar', 'vessel'" in error


def test_classes_of_own_images_have_to_be_named(folder, tmp_path, capsys, monkeypatch):
    dashed = ["--rare-classes", "-scar", "--model_path", tmp_path / "b"]
    assert "must be renamed" in refused(capsys, monkeypatch, "main_moco", folder, *dashed)
    error = refused(capsys, monkeypatch, "main_moco", folder, "--model_path", tmp_path / "b", *TINY)
    assert all(name in error for name in [*BASE, *RARE, "--base-classes"])


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory):
    """The synthetic data, with two images per lesion."""
    root = tmp_path_factory.mktemp("pairs") / "data"
    shutil.copytree(data, root)
    lines = [f"{i},LESION_{n // 2},x" for n, (i, *_) in enumerate(isic2018.find(root).rows)]
    (root / isic2018.GROUPINGS).write_text(
        "\n".join(["image,lesion_id,diagnosis_confirm_type", *lines])
    )
    return root


def test_lesion_disjoint_scores(pairs, chain, tmp_path):
    lesions = open_dataset(pairs).groups
    flags = ["--k_shot", 3, "--lesion-disjoint", "-j", 0]
    call("test", pairs, "--resume", chain.pretrained, *flags, "--output", tmp_path)
    call("generate_pseudo", "--datadir", pairs, "--resume", chain.pretrained,
         "--savedir", tmp_path / "labels", *flags)  # fmt: skip
    scores = json.loads((tmp_path / "test_lr_3way_3shot_seed0.json").read_text())
    task = Task.from_dict(scores["task"])
    assert task == load_task(tmp_path / "labels") and task.excluded_ids
    with open(tmp_path / "test_lr_3way_3shot_seed0.csv") as file:
        query = [row["image"] for row in csv.DictReader(file)]
    support = {i for ids in task.support_ids for i in ids}
    assert not {lesions[i] for i in query} & {lesions[i] for i in support}
    assert len(query) + len(task.excluded_ids) + 9 == len(open_dataset(pairs).rare)


def test_rare_split_and_the_oracle(data, chain, tmp_path):
    flags = [data, "-j", 0, "--output", tmp_path]
    call("test", *flags, "--resume", chain.pretrained, "--k_shot", 2, "--rare-split")
    argv = [data, "--model_path", tmp_path / "o", "--oracle", "--arch", "conv4"]
    argv += ["--image-size", 32, "--epochs", 1, "-j", 0]
    scratch.main([str(arg) for arg in argv])
    call("test", *flags, "--resume", tmp_path / "o", "--load_cla")
    names = ("test_lr_3way_2shot_seed0", "test_direct_3way_allshot_seed0")
    few, oracle = (
        {
            row["image"]
            for row in csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())
        }
        for name in names
    )
    assert few == oracle and len(oracle) == pytest.approx(0.2 * len(open_dataset(data).rare), abs=2)


def test_flags_that_draw_a_task_are_refused_for_a_student(data, chain, capsys, monkeypatch):
    for flag in ("--group-disjoint", "--lesion-disjoint", "--rare-split"):
        error = refused(capsys, monkeypatch, "test", data, "--resume", chain.student, flag)
        assert "--group-disjoint" in error and "task" in error


def test_folders_of_patients_from_the_task_to_its_scores(folder, tmp_path, capsys, monkeypatch):
    own, a, labels = tmp_path / "own", tmp_path / "a", tmp_path / "labels"
    for name in (*BASE, *RARE):
        for number, path in enumerate(sorted((folder / name).iterdir())):
            patient = own / name / f"Patient {number // 2}"
            patient.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, patient)
    classes = ["--base-classes", *BASE, "--rare-classes", *RARE]
    call("main_moco", own, "--model_path", a, *TINY, "--epochs", 0, *classes)
    assert "where a task is drawn, --group-folders takes them" in capsys.readouterr().out
    drawn = ["--resume", a, "--k_shot", 1, "-j", 0, "--group-folders", "--group-disjoint"]
    call("generate_pseudo", own, "--savedir", labels, *drawn)
    task = load_task(labels)
    patients = {i.split("/")[1] for ids in task.support_ids for i in ids}
    support = {i for ids in task.support_ids for i in ids}
    same = {i for i in open_dataset(own, BASE, RARE).rare.ids if i.split("/")[1] in patients}
    assert set(task.excluded_ids) == same - support != set()
    assert load_pseudo_labels(labels)[1].about["args"]["group_folders"] is True
    call("generate_pseudo", own, "--savedir", labels, *drawn)
    assert "already done" in capsys.readouterr().out
    call("test", own, *drawn)
    scores = json.loads((a / "test_lr_2way_1shot_seed0.json").read_text())
    assert scores["shared_with_support"]["groups"] == 0 and Task.from_dict(scores["task"]) == task
    error = refused(capsys, monkeypatch, "test", folder, *drawn, "--overwrite")
    assert "--group-folders: clinic" in error and "has no folders within its class folders" in error
