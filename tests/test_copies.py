"""Copies and groups of images in the four scripts."""

import json
import os
import shutil

import pytest

from conftest import TINY, call, refused
from datasets import isic2018, open_dataset
from datasets.cache import files_key
from datasets.episode import load_task
from moco.checkpoint import load_checkpoint
from moco.config import Pretraining
from trainer.settings import resolve

CHOSEN = ["--k-shot", 4, "--seed", 1, "-j", 0]


@pytest.fixture(scope="module")
def doubled(data, tmp_path_factory):
    """The synthetic data, in which two of three images of a class have the same content."""
    root = tmp_path_factory.mktemp("doubled") / "data"
    shutil.copytree(data, root)
    found = open_dataset(root)
    for images in (found.base, found.rare):
        for name in images.classes:
            paths = [p for p, n in zip(images.paths, images.labels) if images.classes[n] == name]
            for one, other in zip(paths[::3], paths[1::3]):
                other.write_bytes(one.read_bytes())
    return root


@pytest.fixture(scope="module")
def earlier(doubled, tmp_path_factory):
    """Stages (a) to (c) on all copies, as before they were left out."""
    root, flags = tmp_path_factory.mktemp("earlier"), ["--allow-duplicates", "--no-cache"]
    call("main_moco", doubled, *flags, "--model_path", root / "a", *TINY, "--epochs", 1)
    call("generate_pseudo", "--datadir", doubled, "--resume", root / "a", *CHOSEN,
         "--savedir", root / "labels")  # fmt: skip
    return root


def test_copies_are_left_out_and_named(doubled, tmp_path, capsys):
    call("main_moco", doubled, "--model_path", tmp_path / "a", *TINY, "--epochs", 0)
    printed = capsys.readouterr().out
    counted = load_checkpoint(tmp_path / "a")
    everything = open_dataset(doubled)
    copies = sum(n // 3 + (n % 3 == 2) for n in everything.base.counts().values())
    assert sum(counted["base"]["counts"].values()) == len(everything.base) - copies
    assert "copies of another image: ISIC_" in printed and "(as ISIC_" in printed
    assert counted["data"]["passed_over"]["copies of another image"]["number"] > copies


def test_files_made_with_copies_say_what_to_do(doubled, earlier, tmp_path, capsys, monkeypatch):
    advice = "add --allow-duplicates"
    again = ["main_moco", doubled, "--model_path", earlier / "a", *TINY, "--epochs", 2]
    assert advice in refused(capsys, monkeypatch, *again)
    student = [doubled, "--savedir", earlier / "labels", "-b", 8, "-j", 0, "--bn-groups", 2]
    student += ["--epochs", 0, "--model_path", tmp_path / "d"]
    error = refused(capsys, monkeypatch, "main_distill", *student, "--no-allow-duplicates")
    assert "pseudo labels were made for" in error and advice in error
    score = ["test", doubled, "--resume", earlier / "a", "--savedir", earlier / "labels", "-j", 0]
    score += ["--output", tmp_path]
    assert advice in refused(capsys, monkeypatch, *score, "--no-allow-duplicates")
    labels = ["generate_pseudo", "--datadir", doubled, "--resume", earlier / "a", *CHOSEN]
    call(*labels, "--savedir", tmp_path / "l", "--no-allow-duplicates")
    note = next(line for line in capsys.readouterr().out.splitlines() if "was trained on" in line)
    assert advice in note
    # A later stage takes the setting over.
    call("main_distill", *student)
    assert load_checkpoint(tmp_path / "d")["args"]["allow_duplicates"] is True
    call(*score)


def test_allowed_copies_of_support_images_are_counted(doubled, earlier, tmp_path, capsys):
    call("test", doubled, "--resume", earlier / "a", *CHOSEN, "--output", tmp_path)
    scores = json.loads((tmp_path / "test_lr_3way_4shot_seed1.json").read_text())
    rare, task = open_dataset(doubled).rare, load_task(earlier / "labels")
    sets = task.support(rare), task.query(rare)
    support, query = ([path.read_bytes() for path in images.paths] for images in sets)
    copies = sum(content in support for content in query)
    assert copies and scores["shared_with_support"]["copies"] == copies
    assert f"note: {copies} of {len(query)} query images are copies" in capsys.readouterr().out
    flag = "--no-allow-duplicates"
    call("test", doubled, "--resume", earlier / "a", *CHOSEN, flag, "--output", tmp_path / "once")
    scores = json.loads((tmp_path / "once" / "test_lr_3way_4shot_seed1.json").read_text())
    assert scores["shared_with_support"]["copies"] == 0
    assert "are copies of support images" not in capsys.readouterr().out


def test_a_relabelled_image_is_refused_by_every_stage(data, chain, tmp_path, capsys, monkeypatch):
    root = shutil.copytree(data, tmp_path / "data")
    found = open_dataset(root)
    one, other = found.base.paths[0], found.rare.paths[-1]
    other.write_bytes(one.read_bytes())
    for argv in (
        ["main_moco", root, "--model_path", tmp_path / "a", *TINY],
        ["generate_pseudo", "--datadir", root, "--resume", chain.pretrained, "--savedir", tmp_path],
        ["main_distill", root, "--savedir", chain.labels, "--model_path", tmp_path / "d"],
        ["test", root, "--resume", chain.pretrained],
        ["baselines.scratch", root, "--model-path", tmp_path / "s", "--arch", "conv4"],
        ["baselines.srl", root, "--model-path", tmp_path / "s", "--arch", "conv4"],
        ["plots.__main__", chain.student, "--data", root, "--out", tmp_path / "p"],
    ):
        error = refused(capsys, monkeypatch, *argv)
        assert all(part in error for part in (f"{one} ('NV')", f"{other} ('VASC')")), error
    call("main_moco", root, "--model_path", tmp_path / "a", *TINY, "--epochs", 0,
         "--allow-duplicates")  # fmt: skip


def test_unreadable_copies_are_skipped_as_unreadable(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    found = open_dataset(root)
    for path in (*found.base.paths[:2], *found.rare.paths[-2:]):
        path.write_bytes(b"no image")
    flags = {"data": root, "model_path": tmp_path, "skip_unreadable": True}
    opened = resolve(Pretraining, flags).open_data()
    assert (opened.base.ids, opened.rare.ids) == (found.base.ids[2:], found.rare.ids[:-2])
    assert len(opened.passed_over["unreadable"]) == 4


def test_scores_are_those_of_the_content(data, chain, tmp_path, capsys, monkeypatch):
    """Not of the files' times; scores of earlier versions are still recognised."""
    root = shutil.copytree(data, tmp_path / "data")
    flags = ["--resume", chain.pretrained, "--k-shot", 2, "-j", 0, "--output", tmp_path / "s"]
    call("test", root, *flags)
    capsys.readouterr()
    query = load_task(chain.labels).query(open_dataset(root).rare)
    os.utime(query.paths[0])
    call("test", root, *flags)
    assert "already done" in capsys.readouterr().out
    (file,) = (tmp_path / "s").glob("*.json")
    scores = json.loads(file.read_text())
    del scores["images"]["content"], scores["shared_with_support"], scores["data"]
    scores["images"]["files"] = files_key(query, change_time=False)
    scores["args"]["lesion_disjoint"] = scores["args"].pop("group_disjoint")
    file.write_text(json.dumps(scores))
    call("test", root, *flags)
    assert "already done" in capsys.readouterr().out
    call("test", root, *flags, "--overwrite")
    task = load_task(chain.labels)
    for images in (task.query(open_dataset(root).rare), task.support(open_dataset(root).rare)):
        before, data = os.stat(images.paths[0]), images.paths[0].read_bytes()
        images.paths[0].write_bytes(data[:-9] + bytes(9))  # of the same size and time
        os.utime(images.paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "would be overwritten" in refused(capsys, monkeypatch, "test", root, *flags)
        images.paths[0].write_bytes(data)


@pytest.mark.parametrize("flag", ["--group-disjoint", "--lesion-disjoint", "--group_disjoint"])
@pytest.mark.parametrize("source", ["csv", "file"])
def test_groups_of_own_images(source, flag, smears, chain, tmp_path, capsys):
    root, group_of = smears, {}
    for path in sorted(smears.glob("*/*.png")):
        group_of[f"{path.parent.name}/{path.name}"] = f"P{int(path.stem) // 2}"
    more = []
    if source == "csv":
        root = tmp_path / "images.csv"
        rows = [f"{smears / i},{i.split('/')[0]},{group}" for i, group in group_of.items()]
        root.write_text("\n".join(["path,label,patient", *rows]))
        more = ["--base-classes", *open_dataset(smears).base.classes]
        more += ["--rare-classes", *open_dataset(smears).rare.classes, "--group-column", "patient"]
        group_of = {str(smears / i): group for i, group in group_of.items()}
    else:
        table = tmp_path / "groups.csv"
        table.write_text("\n".join(["image,group", *(f"{i},{g}" for i, g in group_of.items())]))
        more = ["--groups", table]
    flags = ["--resume", chain.pretrained, "--k-shot", 1, "-j", 0, *more]
    for name, extra in (("mixed", []), ("disjoint", [flag])):
        call("test", root, *flags, "--output", tmp_path / name, *extra)
        printed = capsys.readouterr().out
        scores = json.loads((tmp_path / name / "test_lr_3way_1shot_seed0.json").read_text())
        lines = (tmp_path / name / "test_lr_3way_1shot_seed0.csv").read_text().splitlines()[1:]
        query = [line.split(",")[0] for line in lines]
        support = {group_of[i] for ids in scores["task"]["support_ids"] for i in ids}
        mixed = sum(group_of[i] in support for i in query)
        assert scores["shared_with_support"] == {
            "copies": 0, "groups": mixed, "without_group": 0
        }  # fmt: skip
        assert (mixed > 0) == (name == "mixed")
        note = f"note: {mixed} of {len(query)} query images share a group"
        assert (note in printed) == (mixed > 0)
        assert ("none from the support set or its groups" in printed) == (mixed == 0)
        assert any(note.startswith("4 groups") for note in scores["data"]["notes"])


def test_a_stage_notes_a_task_that_mixes_groups(data, chain, tmp_path, capsys):
    root = shutil.copytree(data, tmp_path / "data")
    ids = [row.id for row in isic2018.find(root).rows]
    rows = [f"{i},L{number // 4}" for number, i in enumerate(ids)]
    (root / isic2018.GROUPINGS).write_text("\n".join(["image,lesion_id", *rows]))
    labels = ["--resume", chain.pretrained, "--savedir", tmp_path / "l", "--k-shot", 3, "-j", 0]
    scratch = ["--arch", "conv4", "--image-size", 32, "--epochs", 0, "--k-shot", 3, "-j", 0]
    for argv in (
        ["generate_pseudo", "--datadir", root, *labels],
        ["baselines.scratch", root, "--model-path", tmp_path / "s", *scratch],
    ):
        call(*argv)
        assert "query images share a group" in capsys.readouterr().out
        call(*argv, "--group-disjoint", "--overwrite")
        assert "share a group" not in capsys.readouterr().out


def test_scores_without_groups_say_so(smears, chain, tmp_path, capsys):
    flags = ["--resume", chain.pretrained, "--k-shot", 1, "-j", 0, "--output", tmp_path]
    call("test", smears, *flags)
    assert "none from the support set; groups unknown" in capsys.readouterr().out
    scores = json.loads((tmp_path / "test_lr_3way_1shot_seed0.json").read_text())
    assert scores["shared_with_support"]["groups"] is None


def swap(one, other):
    content = one.read_bytes(), other.read_bytes()
    other.write_bytes(content[0])
    one.write_bytes(content[1])


def test_images_edited_between_stages(data, chain, tmp_path, capsys, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    found = open_dataset(root)
    labels = ["generate_pseudo", "--datadir", root, "--resume", chain.pretrained, *CHOSEN]
    labels += ["--savedir", tmp_path / "l"]
    call(*labels)
    capsys.readouterr()
    call(*labels)
    assert "already done" in capsys.readouterr().out
    student = ["main_distill", root, "--savedir", tmp_path / "l", "-b", 8, "-j", 0]
    student += ["--bn-groups", 2, "--epochs", 0, "--model-path", tmp_path / "d"]
    score = ["test", root, "--resume", tmp_path / "d", "--load-cla", "-j", 0]
    call(*student)
    call(*score, "--output", tmp_path / "s1")
    printed = capsys.readouterr().out
    assert "have changed" not in printed
    # Two base images change places: pseudo labels are of the images before.
    swap(*found.base.paths[:2])
    call(*student, "--resume", tmp_path / "d")
    assert "note: files have changed since" in capsys.readouterr().out
    call(*student, "--overwrite")
    assert "note: base images have changed" in capsys.readouterr().out
    assert "images of other content" in refused(capsys, monkeypatch, *labels)
    swap(*found.base.paths[:2])
    # A support image changes places with a query image, or is edited.
    task = load_task(tmp_path / "l")
    path_of = dict(zip(found.rare.ids, found.rare.paths))
    support, query = (path_of[i] for i in (task.support_ids[0][0], task.query(found.rare).ids[0]))
    swap(support, query)
    score += ["--output", tmp_path / "s2"]
    error = refused(capsys, monkeypatch, *score)
    assert "1 support images have changed" in error and "now in the query set" in error
    assert "images of other content" in refused(capsys, monkeypatch, *labels)
    swap(support, query)
    support.write_bytes(support.read_bytes() + b"\0")
    call(*score)
    assert "note: 1 support images have changed" in capsys.readouterr().out
