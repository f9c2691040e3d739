"""What a data folder holds is told by every stage; renamed folders; what --predict takes."""

import csv
import json
import re
import shutil
import sys
import textwrap

import pytest
from PIL import Image

from conftest import REPOSITORY, TINY, call, refused
from datasets import isic2018, open_dataset
from datasets.episode import Task, draw_task
from datasets.pseudo import load_pseudo_labels
from moco.checkpoint import load_checkpoint


def test_every_stage_tells_what_it_found(data, chain):
    # The first lines: other tests may leave files in the folder, which are passed over.
    block = "\n".join(open_dataset(data).summary().splitlines()[:3]) + "\n"
    assert block.startswith("isic2018:\n  base             35  NV 1")
    for name, printed in chain.printed.items():
        assert printed.count(block) == 1, name
    record = load_checkpoint(chain.pretrained)["data"]
    found = open_dataset(data).to_dict()
    assert all(record[part] == found[part] for part in ("dataset", "base", "rare", "not_used"))
    assert load_checkpoint(chain.student)["data"] == record
    for folder in (chain.pretrained, chain.student):
        assert json.loads((folder / "log.jsonl").read_text().splitlines()[0])["data"] == record
    assert load_pseudo_labels(chain.labels)[1].about["data"] == record
    scores = json.loads((chain.student / "test_direct_3way_2shot_seed0.json").read_text())
    assert scores["data"] == record


def test_quiet_and_other_processes(data, tmp_path, capsys, monkeypatch):
    argv = [data, "--model_path", tmp_path / "a", *TINY, "--epochs", 0]
    call("main_moco", *argv, "--quiet")
    said = capsys.readouterr().out
    assert said.startswith("isic2018: 35 base, 25 rare") and "cache: " not in said
    small = ["--arch", "conv4", "--image-size", 32, "--epochs", 0, "-j", 0, "--quiet"]
    call("baselines.simclr", data, "--model_path", tmp_path / "b", *small)
    a, labels = tmp_path / "a", tmp_path / "labels"
    drawn = [data, "--resume", a, "-j", 0, "--quiet"]
    call("generate_pseudo", *drawn, "--k-shot", 2, "--savedir", labels)
    call("test", *drawn, "--k-shot", 2)
    call("test", *drawn, "--k-shot", 2, "--tasks", 2)
    call("test", *drawn, "--k-shot", 2, "--predict", data)
    call("main_distill", data, "--savedir", labels, "--model-path", tmp_path / "d", "--epochs", 0,
         "-b", 8, "--bn-groups", 2, "-j", 0, "--quiet")  # fmt: skip
    assert "cache: " not in capsys.readouterr().out
    # The second machine of two.
    script = sys.modules["main_moco"]
    monkeypatch.setattr(script, "launch", lambda *_: None)
    other = ["--world-size", 2, "--rank", 1, "--dist-url", "tcp://localhost:1", "--overwrite"]
    script.main([str(arg) for arg in (*argv, *other)])
    assert "isic2018:" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def clinic(data, tmp_path_factory):
    """The synthetic images as class folders."""
    root = tmp_path_factory.mktemp("x") / "clinic"
    for _, path, label, *_ in isic2018.find(data).rows:
        (root / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / label / path.name)
    return root


CLASSES = ["--base-classes", "NV", "MEL", "BKL", "--rare-classes", "DF", "VASC"]


def test_a_data_folder_may_be_renamed_between_stages(clinic, tmp_path, capsys):
    folders = [tmp_path / name for name in ("one", "two", "three", "four", "five")]
    shutil.copytree(clinic, folders[0])
    a, labels, d = tmp_path / "a", tmp_path / "labels", tmp_path / "d"
    train = [*CLASSES, "--model_path", a, *TINY]
    call("main_moco", folders[0], *train, "--epochs", 1)
    folders[0].rename(folders[1])
    call("main_moco", folders[1], *train, "--epochs", 2)  # resumes
    folders[1].rename(folders[2])
    call("generate_pseudo", "--datadir", folders[2], "--resume", a, "--savedir", labels,
         "--k_shot", 2, "-j", 0)  # fmt: skip
    folders[2].rename(folders[3])
    call("main_distill", folders[3], "--savedir", labels, "--model_path", d, "-j", 0)
    folders[3].rename(folders[4])
    capsys.readouterr()
    call("test", folders[4], "--resume", d, "--load_cla", "-j", 0)
    assert "was drawn from" not in capsys.readouterr().out
    assert load_checkpoint(a)["base"]["dataset"] == "two"  # as it was then
    # Other images are still refused.
    next((folders[4] / "NV").iterdir()).unlink()
    with pytest.raises(Exception, match="made for three .*, but the data folder contains five"):
        call("main_distill", folders[4], "--savedir", labels, "--model_path", tmp_path / "e")


def test_tasks_are_equal_whatever_the_folder_was_called(clinic, tmp_path):
    data = open_dataset(clinic, ["NV"], ["DF", "VASC"])
    shutil.copytree(clinic, tmp_path / "other")
    other = open_dataset(tmp_path / "other", ["NV"], ["DF", "VASC"])
    tasks = [draw_task(found.rare, None, 2, 0) for found in (data, other)]
    assert tasks[0].rare != tasks[1].rare and tasks[0] == tasks[1]
    assert tasks[0] != draw_task(data.rare, None, 2, 1) and tasks[0] != tasks[0].to_dict()
    assert Task.from_dict(tasks[0].to_dict()) == tasks[1]


def predictions(out):
    (file,) = out.glob("predict_*.csv")
    with open(file, encoding="utf-8-sig") as rows:
        return file.name, list(csv.DictReader(rows))


@pytest.mark.parametrize("kind", ["folder", "image", "images", "csv"])
def test_predict(kind, clinic, chain, tmp_path, capsys):
    new = tmp_path / "new.patients"
    (new / "ward").mkdir(parents=True)
    for name, source in (("a.jpg", "DF"), ("ward/b", "VASC")):
        shutil.copy(next((clinic / source).iterdir()), new / name)
    (new / "notes.txt").touch()
    table = tmp_path / "list.csv"
    table.write_text("Path;age\nnew.patients\\a.jpg;40\nnew.patients\\ward\\b;50\n")
    paths, ids, name = {
        "folder": ([new], ["a.jpg", "ward/b"], "new.patients"),
        "image": ([new / "a.jpg"], [str(new / "a.jpg")], "a"),
        "images": ([new / "ward" / "b", new / "a.jpg"],
                   [str(new / "a.jpg"), str(new / "ward" / "b")], "b_and_1_more"),
        "csv": ([table], ["new.patients/a.jpg", "new.patients/ward/b"], "list"),
    }[kind]  # fmt: skip
    out = tmp_path / "out"
    argv = ["--resume", chain.student, "--load_cla", "--predict", *paths, "--output", out, "-j", 0]
    call("test", *argv)
    file, rows = predictions(out)
    assert file.startswith(f"predict_{name}_direct_")
    assert [row["image"] for row in rows] == ids
    printed = capsys.readouterr().out
    assert f"{name}:\n  images            {len(ids)}" in printed
    assert ("not images: notes.txt" in printed) == (kind == "folder")
    call("test", *argv)
    assert "already done" in capsys.readouterr().out


def test_a_result_made_when_predict_was_a_single_folder(clinic, chain, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--resume", chain.student, "--load_cla", "--predict", clinic / "DF", "--output", out]
    call("test", *argv, "-j", 0)
    (file,) = out.glob("*.json")
    old = json.loads(file.read_text())
    assert old["args"]["predict"] == [str(clinic / "DF")]
    old["args"]["predict"] = str(clinic / "DF")
    del old["data"], old["args"]["quiet"]
    file.write_text(json.dumps(old))
    capsys.readouterr()
    call("test", *argv, "-j", 0)
    assert "already done" in capsys.readouterr().out


def test_nothing_to_predict(chain, tmp_path, capsys, monkeypatch):
    argv = ["test", "--resume", chain.student, "--load_cla", "--predict"]
    (tmp_path / "x.txt").write_text("path\ngone.jpg\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.pdf").touch()
    (tmp_path / "text.jpg").touch()
    for paths, says in (
        (["gone"], "neither a folder, an image nor a CSV file: .*gone"),
        (["x.txt"], "1 of the 1 images in x.txt are missing: .*gone.jpg"),
        (["empty"], "no images in .*empty; passed over: notes.pdf"),
        (["a.jpg", "text.jpg"], "1 of 2 images cannot be read.*text.jpg: not an image"),
        (["a.jpg", "empty/../a.jpg"], "duplicates"),
    ):
        error = refused(capsys, monkeypatch, *argv, *(tmp_path / path for path in paths))
        assert re.search(says, error), error


def test_the_block_in_the_docs(tmp_path):
    root = tmp_path / "my_images"
    counts = {"nevus": 640, "melanoma": 172, "scar": 19, "angioma": 12, "keloid": 54}
    names = [f"{name}/{n}.jpg" for name, count in counts.items() for n in range(count)]
    names += ["nevus/@eaDir/0.jpg", "scar/Thumbs.db", "scar/notes.txt", "loose.jpg"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    block = open_dataset(root, ["nevus", "melanoma"], ["scar", "angioma"]).summary()
    text = (REPOSITORY / "docs" / "data.md").read_text()
    assert textwrap.indent(block, "    ") in text


def test_files_of_a_messy_folder_can_be_read_again(clinic, tmp_path, capsys):
    """Thumbnail folders, empty classes, odd names: what is passed over is recorded everywhere."""
    data = shutil.copytree(clinic, tmp_path / "data")
    (data / "NV" / "@eaDir").mkdir()
    (data / "NV" / "@eaDir" / "t.jpg").write_bytes(b"x")
    (data / "Thumbs.db").write_bytes(b"x")
    (data / "leer").mkdir()
    a, labels, student = (tmp_path / name for name in ("a", "labels", "student"))
    call("main_moco", data, "--model-path", a, *CLASSES, *TINY, "--epochs", 1)
    call("generate_pseudo", data, "--resume", a, "--savedir", labels, "--k-shot", 2)
    call("main_distill", data, "--savedir", labels, "--model-path", student, "-j", 0)
    call("test", data, "--resume", student, "--load-cla", "-j", 0)
    capsys.readouterr()
    call("main_moco", data, "--model-path", a, *CLASSES, *TINY, "--epochs", 1)
    assert "1 epochs already done" in capsys.readouterr().out
    first = load_checkpoint(student)["data"]["passed_over"]
    named = [name for reason in first.values() for name in reason["first"]]
    assert {"NV/@eaDir/", "leer/"} <= set(named)
    call("baselines.pretrained", data, "--arch", "torchvision/resnet18", "--weights", "none",
         "--image-size", 32, "--model-path", tmp_path / "frozen", *CLASSES)  # fmt: skip
    call("test", data, "--resume", tmp_path / "frozen", "--k-shot", 2, "-j", 0)
