"""Unreadable images: skipped by all stages alike, or reported in one line."""

import csv
import json
import shutil
import sys

import pytest

from conftest import TINY, call, load_script, refused
from datasets import open_dataset
from datasets.episode import load_task
from datasets.pseudo import load_pseudo_labels
from moco.checkpoint import load_checkpoint
from trainer import cli

SKIP = ["--skip-unreadable", "-j", 0]


@pytest.fixture
def damaged(data, tmp_path):
    """Return a copy of the data with two base images and a rare one corrupt, and their paths."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    found = open_dataset(root)
    bad = [found.base.paths[0], found.base.paths[9], found.rare.paths[4]]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    return root, bad


@pytest.mark.parametrize("cache", [[], ["--no-cache"]])
def test_all_stages_skip_the_same_images(damaged, cache, tmp_path, capsys, monkeypatch):
    root, bad = damaged
    found = open_dataset(root)
    base = found.base.take(
        i for i, path in zip(found.base.ids, found.base.paths) if path not in bad
    )
    a, labels, d = tmp_path / "a", tmp_path / "labels", tmp_path / "d"
    call("main_moco", root, "--model_path", a, *TINY, "--epochs", 1, *SKIP, *cache)
    (note,) = [x for x in capsys.readouterr().out.splitlines() if "skipping unreadable" in x]
    assert "2 of 35 images of NV, MEL, BKL, BCC: " in note
    assert [str(path) in note for path in bad] == [True, True, False]
    assert load_checkpoint(a)["base"] == base.fingerprint()
    labelling = ["--datadir", root, "--resume", a, "--k_shot", 2]
    call("generate_pseudo", *labelling, "--savedir", labels, *SKIP, *cache)
    notes = capsys.readouterr().out.splitlines()
    assert "2 of 35" in notes[0] and "1 of 25" in notes[1] and "trained on" not in "".join(notes)
    assert "not read here" not in "".join(notes)
    task, teachers = load_pseudo_labels(labels)
    assert teachers.ids == base.ids and sum(task.rare["counts"].values()) == 24
    call("main_distill", root, "--savedir", labels, "--model_path", d, *SKIP, *cache)
    call("test", root, "--resume", d, "--load_cla", *SKIP, *cache)
    told = "base images are not read here; any unreadable ones are counted, too"
    assert f"note: {told}" in capsys.readouterr().out
    scores = json.loads((d / "test_direct_3way_2shot_seed0.json").read_text())
    assert told in scores["data"]["notes"] and sum(scores["data"]["base"].values()) == 35
    assert f"rare {told[5:]}" in load_checkpoint(d)["data"]["notes"]
    with open(d / "test_direct_3way_2shot_seed0.csv") as file:
        scored = [row["image"] for row in csv.DictReader(file)]
    support = load_task(labels).support(found.rare).ids
    assert sorted([*scored, *support, bad[2].stem]) == sorted(found.rare.ids)
    new = bad[0].parent
    argv = ["--resume", d, "--load_cla", "--predict", new, *cache]
    error = refused(capsys, monkeypatch, "test", *argv)
    assert "3 of 60 images" in error and "--skip-unreadable" in error
    call("test", *argv, *SKIP)
    assert "files, 3 of 60 images: " in capsys.readouterr().out
    # Without the flag, the message names both sets.
    again = [root, "--savedir", labels, "--model_path", tmp_path / "e"]
    error = refused(capsys, monkeypatch, "main_distill", *again)
    assert "isic2018 (NV 14," in error and "isic2018 (NV 16," in error


@pytest.mark.parametrize("script", ["scratch", "simclr", "srl"])
def test_baselines_skip_them_too(script, damaged, tmp_path, capsys):
    small = ["--arch", "conv4", "--image-size", 32, "--epochs", 0]
    call(f"baselines.{script}", damaged[0], "--model_path", tmp_path / "a", *small, *SKIP)
    assert ("1 of 25" if script == "scratch" else "2 of 35") in capsys.readouterr().out


TWO = "-j 2 --multiprocessing-distributed --nproc 2"


@pytest.mark.parametrize("flags", ["-j 0", "-j 1", pytest.param(TWO, marks=pytest.mark.slow)])
def test_an_image_removed_during_training(flags, data, tmp_path, capfd, monkeypatch):
    """Reported in one line, whichever process reads it."""
    shutil.copytree(data, tmp_path / "data")
    removed = open_dataset(tmp_path / "data").base.paths[3]
    monkeypatch.setattr("datasets.open.check_readable", lambda images: images.paths[3].unlink())
    argv = [tmp_path / "data", "--model_path", tmp_path / "a", *TINY, "--epochs", 2, "--no-cache"]
    monkeypatch.setattr(sys, "argv", ["main_moco.py", *map(str, argv), *flags.split()])
    with pytest.raises(SystemExit):
        cli.run(load_script("main_moco").main)
    stderr = capfd.readouterr().err
    assert "Traceback" not in stderr, stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("main_moco.py: error: ") and str(removed) in last
