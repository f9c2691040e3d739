"""test.py --predict: none of these, added images, unreadable ones, the page of thumbnails."""

import csv
import datetime
import errno
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import call, refused
from datasets import open_dataset
from moco.checkpoint import load_checkpoint
from moco.evaluate import FrozenEncoder
from moco.outliers import load_reference

NONE = "none_of_these_3way_2shot_seed0.npz"


@pytest.fixture
def student(chain, tmp_path):
    made = shutil.ignore_patterns("none_of_these_*", "predict_*")  # by other tests
    return shutil.copytree(chain.student, tmp_path / "student", ignore=made)


@pytest.fixture
def new(data, tmp_path):
    """Two rare images and two base images."""
    found = open_dataset(data)
    (tmp_path / "new").mkdir()
    for part in (found.rare, found.base):
        for path in part.paths[:2]:
            shutil.copy(path, tmp_path / "new" / path.name)
    return tmp_path / "new"


def rows_of(folder):
    (file,) = folder.glob("predict_*.csv")
    with open(file, encoding="utf-8-sig") as rows:
        return {row["image"]: row for row in csv.DictReader(rows)}


def test_none_of_these_is_kept_for_later(data, student, new, chain, tmp_path, capsys):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv, "--output", tmp_path / "without")
    printed = capsys.readouterr().out
    assert "no scores for none of these" in printed and "pass the data folder once" in printed
    assert "verdict" not in next(iter(rows_of(tmp_path / "without").values()))
    call("test", data, *argv, "--output", tmp_path / "with")
    first = rows_of(tmp_path / "with")
    capsys.readouterr()
    call("test", *argv, "--output", tmp_path / "later")
    assert rows_of(tmp_path / "later") == first
    assert "no scores" not in capsys.readouterr().out
    # The scores are those of the student's own features.
    encoder, reference = FrozenEncoder(load_checkpoint(student)), load_reference(student / NONE)
    found = open_dataset(data)
    none = reference.none_of_these(encoder.embed(found.rare))
    for path, value in zip(found.rare.paths[:2], none):
        assert float(first[path.name]["none_of_these"]) == pytest.approx(value, abs=1e-5)
    assert sum(map(len, reference.base_scores)) == len(found.base)
    for row in first.values():
        none = float(row["none_of_these"]) > 0.05
        assert row["verdict"] == ("none of these" if none else row["prediction"])
    # Passing the data folder again, or for an earlier result, changes nothing but what is missing.
    call("test", data, *argv, "--output", tmp_path / "later")
    assert "already done" in capsys.readouterr().out
    call("test", *argv, "--output", tmp_path / "without")
    assert "made again" in capsys.readouterr().out and rows_of(tmp_path / "without") == first
    # Of another checkpoint it is not used.
    other = shutil.copytree(chain.pretrained, tmp_path / "other")
    labels = ["--savedir", chain.labels]
    shutil.copy(student / NONE, other / NONE)
    call("test", data, "--resume", other, *labels, "--predict", new, "-j", 0)
    assert load_reference(other / NONE).about["epoch"] == 2
    again = load_reference(other / NONE)
    assert not np.array_equal(again.weights, reference.weights)
    off = ["--no-none-of-these", "--output", tmp_path / "off"]
    call("test", *argv, *off)
    assert "verdict" not in next(iter(rows_of(tmp_path / "off").values()))


def test_new_and_changed_images_are_added(data, student, new, tmp_path, capsys, monkeypatch):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv)
    before = rows_of(student)
    found = open_dataset(data).rare
    shutil.copy(found.paths[5], new / "0.jpg")
    changed, removed, *kept = before
    shutil.copy(found.paths[9], new / changed)
    (new / removed).unlink()
    embedded = []
    embed = FrozenEncoder.embed
    monkeypatch.setattr(
        FrozenEncoder, "embed", lambda self, images, *a, **k:
        (embedded.extend(images.ids), embed(self, images, *a, **k))[1],
    )  # fmt: skip
    capsys.readouterr()
    call("test", *argv)
    assert embedded == ["0.jpg", changed]
    printed = capsys.readouterr().out
    assert "2 new or changed images; 2 as before" in printed
    assert f"1 images are no longer there; their rows are kept: {removed}" in printed
    after = rows_of(student)
    assert list(after) == [*before, "0.jpg"]
    assert [after[i] for i in (removed, *kept)] == [before[i] for i in (removed, *kept)]
    assert after[changed] != before[changed]
    call("test", *argv)
    assert "already done" in capsys.readouterr().out and len(embedded) == 2
    # The same scores as made at once, and only the same images of one folder.
    call("test", *argv, "--output", tmp_path / "at once")
    assert all(after[i] == row for i, row in rows_of(tmp_path / "at once").items())
    other = shutil.copytree(new, tmp_path / "ward" / "new")
    error = refused(capsys, monkeypatch, "test", *argv[:4], other, "-j", 0)
    assert "would be overwritten" in error


@pytest.mark.parametrize("older", [False, True])
def test_rows_are_kept_when_the_data_folder_is_left_out(data, student, new, capsys, older):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", data, *argv)  # the first time: makes the reference
    before = rows_of(student)
    if older:
        (file,) = student.glob("predict_*.json")
        about = json.loads(file.read_text())
        about["none_of_these"]["format"] = 1
        file.write_text(json.dumps(about))
    removed, *kept = before
    (new / removed).unlink()
    rare = open_dataset(data).rare
    for name, path in (("0.jpg", rare.paths[5]), ("1.jpg", rare.paths[9])):
        shutil.copy(path, new / name)
    capsys.readouterr()
    call("test", *argv)
    printed = capsys.readouterr().out
    assert "2 new or changed images; 3 as before" in printed and "made again" not in printed
    after = rows_of(student)
    assert list(after) == [*before, "0.jpg", "1.jpg"]
    assert [after[i] for i in before] == list(before.values())
    assert after["0.jpg"]["none_of_these"]


def test_unreadable_images_are_listed_and_read_once_repaired(student, new, tmp_path, capsys):
    (new / "z.png").write_bytes(b"GIF89a nothing")
    argv = ["--resume", student, "--load-cla", "--predict", new, "--skip-unreadable", "-j", 0]
    call("test", *argv)
    row = rows_of(student)["z.png"]
    assert row["error"] and str(new) not in row["error"] and row["prediction"] == ""
    call("test", *argv)
    assert "already done" in capsys.readouterr().out
    Image.new("RGB", (40, 40)).save(new / "z.png")
    call("test", *argv)
    assert "1 new or changed" in capsys.readouterr().out
    assert rows_of(student)["z.png"]["prediction"]


def test_all_images_unreadable(student, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "z.png").write_bytes(b"GIF89a nothing")
    argv = ["--resume", student, "--load-cla", "--predict", tmp_path / "new", "--skip-unreadable"]
    call("test", *argv, "-j", 0)
    assert re.search(r"unreadable +1\n", capsys.readouterr().out)
    assert rows_of(student)["z.png"]["error"] == "not an image"


def test_skipping_unreadable_images_adds_to_earlier_rows(student, new, capsys):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv)
    before = rows_of(student)
    (new / "z.png").write_bytes(b"GIF89a nothing")
    call("test", *argv, "--skip-unreadable")
    after = rows_of(student)
    assert after.pop("z.png")["error"] == "not an image"
    assert all({**row, "error": ""} == after[name] for name, row in before.items())


def test_another_level_changes_the_verdicts_everywhere(data, student, new, tmp_path, capsys):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", data, *argv, "--none-level", 0)
    before = rows_of(student)
    assert {row["verdict"] for row in before.values()} == {"none of these"}
    call("test", *argv, "--none-level", 1, "--sheet", tmp_path / "page.html")
    assert "written: " in capsys.readouterr().out
    after = rows_of(student)
    for name, row in before.items():
        assert after[name] == {**row, "verdict": row["prediction"]}
    assert "<h2>none of these" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    call("test", *argv, "--none-level", 1)
    assert "already done" in capsys.readouterr().out


def test_scores_for_none_of_these_are_not_lost(data, student, new, capsys, monkeypatch):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", data, *argv)
    before = rows_of(student)
    error = refused(capsys, monkeypatch, "test", *argv, "--no-none-of-these")
    assert "would be overwritten (without scores for none of these now)" in error
    (student / NONE).unlink()
    assert "without scores for none of these" in refused(capsys, monkeypatch, "test", *argv)
    assert rows_of(student) == before


def test_scores_for_none_of_these_outlive_further_training(
    data, student, chain, new, tmp_path, capsys, monkeypatch
):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", data, *argv)
    before = rows_of(student)
    trained = ["main_distill", data, "--savedir", chain.labels, "--model-path", student, "-j", 0]
    call(*trained, "--epochs", load_checkpoint(student)["epoch"] + 1)
    assert "without scores for none of these" in refused(capsys, monkeypatch, "test", *argv)
    assert rows_of(student) == before
    call("test", data, *argv)
    assert rows_of(student) != before and all(row["verdict"] for row in rows_of(student).values())


def test_what_refuses_predictions_comes_before_the_work(
    data, student, new, tmp_path, capsys, monkeypatch
):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    (tmp_path / "page.html").write_text("of another")
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.Evaluation.encoder", None)  # not reached
        error = refused(capsys, patch, "test", data, *argv, "--sheet", tmp_path / "page.html")
        assert "is not the page of these predictions" in error
        patch.setattr("common.files.os.access", lambda *_: False)
        error = refused(capsys, patch, "test", data, *argv)
        assert f"no permission to write to {student}; choose another folder with --output" in error


def test_a_full_disk_loses_nothing_that_readers_have_added(student, new, capsys, monkeypatch):
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv)
    (file,) = student.glob("predict_*.csv")
    head, first, *others = file.read_text(encoding="utf-8-sig").splitlines()
    text = [f"{head},comment", f"{first},seen", *(f"{line}," for line in others)]
    file.write_text("\n".join(text), encoding="utf-8")
    gone, edited, *_ = sorted(new.iterdir())
    gone.unlink()
    Image.effect_noise((40, 40), 99).convert("RGB").save(edited)

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.write_utf8", full)
        assert "No space left" in refused(capsys, monkeypatch, "test", *argv)
    call("test", *argv)
    assert "1 images are no longer there; their rows are kept" in capsys.readouterr().out
    assert [row["comment"] for row in rows_of(student).values()] == ["seen", "", "", ""]


def test_the_same_name_from_another_folder(student, new, tmp_path, capsys, monkeypatch):
    """Relative names are not enough to tell two patients apart."""
    (tmp_path / "second").mkdir()
    shutil.copytree(new, tmp_path / "second" / "new")
    argv = ["--resume", student, "--load-cla", "--predict", "new", "-j", 0]
    monkeypatch.chdir(tmp_path)
    call("test", *argv)
    call("test", *argv)
    assert "already done" in capsys.readouterr().out
    first = sorted((tmp_path / "second" / "new").iterdir())[0]
    Image.effect_noise((40, 40), 99).convert("RGB").save(first)
    monkeypatch.chdir(tmp_path / "second")
    assert "(another folder)" in refused(capsys, monkeypatch, "test", *argv)
    (tmp_path / "second" / "new" / "more.png").write_bytes(first.read_bytes())
    first.unlink()  # all that both have is the same
    assert "(another folder)" in refused(capsys, monkeypatch, "test", *argv)
    for path in (tmp_path / "second" / "new").iterdir():
        path.rename(path.with_stem(f"{path.stem}-2"))  # other names are no better
    assert "(another folder)" in refused(capsys, monkeypatch, "test", *argv)
    new.parent.joinpath("third").mkdir()  # a project that has moved
    new.rename(tmp_path / "third" / "new")
    monkeypatch.chdir(tmp_path / "third")
    for _ in range(2):
        call("test", *argv)
    assert "already done" in capsys.readouterr().out
    changed = sorted((tmp_path / "third" / "new").iterdir())[0]
    shutil.copy(tmp_path / "second" / "new" / "more-2.png", changed)
    call("test", *argv)  # changed at its new place, which is known
    assert "1 new or changed images" in capsys.readouterr().out


def test_what_readers_do_to_the_file(data, student, new, tmp_path, capsys):
    """A column of theirs is kept; a file that is gone is made again."""
    root = shutil.copytree(data, tmp_path / "root")
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv)
    before = rows_of(student)
    (file,) = student.glob("predict_*.csv")
    head, first, *others = file.read_text(encoding="utf-8-sig").splitlines()
    text = "\n".join([f"{head},comment", f"{first},seen", *(f"{line}," for line in others)])
    file.write_text(text, encoding="utf-8")
    shutil.copy(open_dataset(data).rare.paths[5], new / "0.jpg")
    call("test", *argv)
    assert [row["comment"] for row in rows_of(student).values()] == ["seen", "", "", "", ""]
    call("test", root, *argv)  # with scores for none of these: all rows are made again
    Image.effect_noise((40, 40), 99).convert("RGB").save(new / next(iter(before)))
    call("test", root, *argv)
    made = rows_of(student)
    assert [row["comment"] for row in made.values()] == ["seen", "", "", "", ""]
    assert all(row["verdict"] for row in made.values())
    file.unlink()
    (new / "0.jpg").unlink()
    capsys.readouterr()
    call("test", root, *argv)
    assert f"{file} is missing; it is made again" in capsys.readouterr().out
    assert sorted(rows_of(student)) == sorted(before)


def test_sheet(data, student, new, tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.html"
    argv = ["--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv)
    call("test", *argv, "--sheet", page)  # of an earlier result
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 4 and all(path.name in text for path in new.iterdir())
    assert text.count("<th>") == 8 - 1 and "<h1>Predictions of new</h1>" in text  # no none of these
    for told in ("the student&#x27;s own classifier", "3-way 2-shot, seed 0", "conv4, 2 epochs"):
        assert f"{told}" in text
    assert f"<td>{datetime.date.today()}</td>" in text
    call("test", data, *argv, "--sheet", page)  # its own page is replaced, no other file
    assert "made again" in capsys.readouterr().out
    assert "none of these" in page.read_text(encoding="utf-8")
    older = page.read_text(encoding="utf-8").replace('<meta name="result', '<meta name="x')
    page.write_text(older, encoding="utf-8")  # of a version without marks
    call("test", *argv, "--sheet", page)
    again = [*argv, "--output", tmp_path / "other"]
    error = refused(capsys, monkeypatch, "test", *again, "--sheet", page)
    assert "page.html exists and is not the page of these predictions" in error
    error = refused(capsys, monkeypatch, "test", data, "--resume", student, "--sheet", page)
    assert "--sheet: only with --predict" in error
    error = refused(capsys, monkeypatch, "test", data, "--resume", student, "--none-level", 0.2)
    assert "--none-level: only with --predict" in error
    monkeypatch.setattr(FrozenEncoder, "embed", None)  # refused before the work
    error = refused(capsys, monkeypatch, "test", *again, "--sheet", tmp_path)
    assert "is a folder" in error
    error = refused(capsys, monkeypatch, "test", *again, "--sheet", page / "page.html")
    assert "is not a folder" in error


def test_unreadable_base_images_say_what_to_do(data, student, new, tmp_path, capsys):
    root = shutil.copytree(data, tmp_path / "root")
    path = open_dataset(root).base.paths[3]
    path.write_bytes(b"GIF89a nothing")
    argv = [root, "--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv, "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "no scores for none of these, which need all" in printed
    assert "skip them with --skip-unreadable" in printed and path.name in printed
    call("test", *argv, "--output", tmp_path / "skipped", "--skip-unreadable")
    assert "no scores" not in capsys.readouterr().out
    assert all(row["none_of_these"] for row in rows_of(tmp_path / "skipped").values())


@pytest.mark.parametrize("count", [1, 6])
def test_few_base_images(data, new, chain, tmp_path, capsys, count):
    """Of one there is no covariance; of six no share of at most 5 %."""
    found = open_dataset(data)
    for part, classes, number in ((found.base, ("NV",), count), (found.rare, ("DF", "VASC"), 3)):
        for name in classes:
            (tmp_path / "own" / name).mkdir(parents=True)
            for row in [row for row in part.rows() if row.label == name][:number]:
                shutil.copy(row.path, tmp_path / "own" / name)
    call("test", tmp_path / "own", "--base-classes", "NV", "--rare-classes", "DF", "VASC",
         "--resume", chain.pretrained, "--k-shot", 1, "--predict", new, "-j", 0,
         "--output", tmp_path / "out")  # fmt: skip
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path / "out").values()
    if count == 1:
        assert "no scores for none of these" in printed and "base images" in printed
        assert all("verdict" not in row and row["prediction"] for row in rows)
    else:
        assert "with 6 base images none_of_these is at least 0.14, so above --none-level" in printed
        assert {row["verdict"] for row in rows} == {"none of these"}


def test_an_edited_base_image_is_embedded_again(data, student, new, tmp_path, capsys, monkeypatch):
    """All rows are then made again, unless those of images that are gone would be lost."""
    root = shutil.copytree(data, tmp_path / "root")
    argv = [root, "--resume", student, "--load-cla", "--predict", new, "-j", 0]
    call("test", *argv)
    before = load_reference(student / NONE)
    removed, *_ = rows = rows_of(student)
    (new / removed).rename(tmp_path / removed)
    paths = open_dataset(root).base.paths
    Image.effect_noise((40, 40), 99).convert("RGB").save(paths[0])
    kept = (student / NONE).read_bytes()
    error = refused(capsys, monkeypatch, "test", *argv)
    assert f"without the rows of 1 images that are no longer there: {removed}" in error
    assert rows_of(student) == rows and (student / NONE).read_bytes() == kept
    (tmp_path / removed).rename(new / removed)
    call("test", *argv)
    assert "made again" in capsys.readouterr().out
    after = load_reference(student / NONE)
    assert not np.array_equal(after.weights, before.weights) and rows_of(student) != rows
    call("test", *argv)
    assert "already done" in capsys.readouterr().out
