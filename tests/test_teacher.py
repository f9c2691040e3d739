"""test.py shows a student's scores beside its teacher's."""

import json
import shutil

import numpy as np
import pytest

from conftest import TINY, call
from datasets import open_dataset
from datasets.pseudo import load_pseudo_labels
from evaluation.beside import STUDENT_DIRECT, STUDENT_LR, TEACHER, print_beside
from moco.checkpoint import load_checkpoint
from moco.evaluate import FrozenEncoder
from trainer.checkpoint import save


@pytest.fixture
def folder(chain, tmp_path):
    """A copy of the chain's output whose student has its teacher there."""
    shutil.copytree(chain.root, tmp_path / "chain")
    student = load_checkpoint(tmp_path / "chain" / "d")
    student["teacher"]["checkpoint"] = str(tmp_path / "chain" / "a")
    save(tmp_path / "chain" / "d", student)
    return tmp_path / "chain"


def scores(folder, name="test_direct_3way_2shot_seed0"):
    return json.loads((folder / f"{name}.json").read_text())


def test_three_scores_side_by_side(chain, data, tmp_path, capsys):
    """Each equals the score of its own command."""
    call("test", data, "--resume", chain.student, "--load-cla", "-j", 0, "--output", tmp_path / "d")
    printed = capsys.readouterr().out
    beside = scores(tmp_path / "d")["beside"]
    assert list(beside) == [TEACHER, STUDENT_DIRECT, STUDENT_LR]
    for number, words in enumerate((
        ["--resume", chain.pretrained, "--savedir", chain.labels],
        ["--resume", chain.student, "--load-cla"],
        ["--resume", chain.student],
    )):  # fmt: skip
        out = tmp_path / str(number)
        call("test", data, *words, "-j", 0, "--output", out, "--no-teacher")
        assert "teacher" not in capsys.readouterr().out
        how = "direct" if "--load-cla" in words else "lr"
        alone = scores(out, f"test_{how}_3way_2shot_seed0")
        assert "beside" not in alone
        for key in ("confusion", "accuracy", "macro_auc"):
            assert list(beside.values())[number][key] == alone[key]
        (line,) = [line for line in printed.splitlines() if line.startswith(list(beside)[number])]
        assert f"{alone['accuracy']:.1%}" in line and f"{alone['macro_f1']:.1%}" in line
    call("test", data, "--resume", chain.student, "--load-cla", "-j", 0, "--output", tmp_path / "d")
    again = capsys.readouterr().out
    assert "already done" in again and TEACHER in again


def test_a_comparison_that_was_left_out_is_made(chain, data, tmp_path, capsys):
    argv = ["test", data, "--resume", chain.student, "--load-cla", "-j", 0, "--output", tmp_path]
    call(*argv, "--no-teacher")
    before = scores(tmp_path)
    call(*argv)
    assert "lacks the scores beside the teacher's; it is made again" in capsys.readouterr().out
    after = scores(tmp_path)
    assert list(after.pop("beside")) == [TEACHER, STUDENT_DIRECT, STUDENT_LR]
    assert after["confusion"] == before["confusion"]
    call(*argv, "--no-teacher")
    printed = capsys.readouterr().out
    assert "already done" in printed and TEACHER not in printed


@pytest.mark.parametrize("worse", [True, False])
def test_a_worse_student_is_named(capsys, worse):
    def of(accuracy):
        return dict.fromkeys(("accuracy", "average", "macro_f1", "macro_auc"), accuracy)

    direct = of(0.392 if worse else 0.7)
    names = (TEACHER, STUDENT_DIRECT, STUDENT_LR)
    found = dict(zip(names, (of(0.651), direct, of(0.7 if worse else 0.392))))
    for classifier, named in (("direct", "its own classifier"), ("lr", "logistic regression")):
        print_beside(found, classifier)
        note = f"the student by {named} is worse than its teacher: 39.2% against 65.1%"
        assert (note in capsys.readouterr().out) == (worse == (classifier == "direct"))


def test_a_teacher_that_is_not_there(folder, data, tmp_path, capsys):
    argv = ["test", data, "--resume", folder / "d", "--load-cla", "-j", 0, "--output"]
    call(*argv, tmp_path / "0")
    assert scores(tmp_path / "0")["beside"][TEACHER]
    capsys.readouterr()
    call("main_moco", data, "--model_path", folder / "a", *TINY, "--epochs", 3)  # trained on
    call(*argv, tmp_path / "1")
    assert "has been trained on or replaced" in capsys.readouterr().out
    shutil.rmtree(folder / "a")
    call(*argv, tmp_path / "2")
    assert "not at hand: no checkpoint at" in capsys.readouterr().out
    student = load_checkpoint(folder / "d")
    del student["teacher"]  # of an earlier version
    save(folder / "d", student)
    call(*argv, tmp_path / "3")
    assert "does not record its teacher" in capsys.readouterr().out
    for n in "123":
        beside = scores(tmp_path / n)["beside"]
        assert beside[TEACHER] is None and beside[STUDENT_LR]


def test_a_teacher_that_is_there_again(folder, data, tmp_path, capsys):
    argv = ["test", data, "--resume", folder / "d", "--load-cla", "-j", 0, "--output", tmp_path]
    (folder / "a").rename(folder / "elsewhere")
    call(*argv)
    assert scores(tmp_path)["beside"][TEACHER] is None
    capsys.readouterr()
    call(*argv)
    printed = capsys.readouterr().out
    assert "already done" in printed and "the teacher's score is not at hand" in printed
    (folder / "elsewhere").rename(folder / "a")
    call(*argv)
    assert "it is made again" in capsys.readouterr().out and scores(tmp_path)["beside"][TEACHER]


def test_labels_by_the_statistics_of_each_image(chain, data, tmp_path, capsys):
    """They differ from those by running statistics, and the teacher is scored as it labelled."""
    argv = ["generate_pseudo", data, "--resume", chain.pretrained, "--k-shot", 2, "-j", 0]
    call(*argv, "--savedir", tmp_path / "l", "--norm-statistics", "image")
    _, labels = load_pseudo_labels(tmp_path / "l")
    _, usual = load_pseudo_labels(chain.labels)
    encoder = FrozenEncoder(load_checkpoint(chain.pretrained), norm_statistics="image")
    base = open_dataset(data).base
    np.testing.assert_allclose(labels.embeddings, encoder.embed(base), atol=1e-5)
    assert np.abs(labels.probabilities - usual.probabilities).max() > 0.01
    call("main_distill", data, "--savedir", tmp_path / "l", "--model-path", tmp_path / "d", "-b", 8,
         "-j", 0, "--bn-groups", 2, "--epochs", 0)  # fmt: skip
    call("test", data, "--resume", tmp_path / "d", "--load-cla", "-j", 0)
    call("test", data, "--resume", chain.pretrained, "--savedir", tmp_path / "l", "-j", 0,
         "--norm-statistics", "image", "--output", tmp_path / "alone")  # fmt: skip
    alone = scores(tmp_path / "alone", "test_lr_3way_2shot_seed0")
    assert scores(tmp_path / "d")["beside"][TEACHER]["confusion"] == alone["confusion"]
