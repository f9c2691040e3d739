"""The schedule of a run, and notes on runs that are too short for their settings."""

import shutil

import pytest

from conftest import TINY, call, refused
from moco.checkpoint import load_checkpoint
from moco.config import Distillation, Pretraining
from moco.resume import notes_on_length, resolve_training
from trainer.flags import parse
from trainer.settings import resolve


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [120, 160]),
        (["--epochs", 200], [120, 160]),
        (["--epochs", 80], [48, 64]),
        (["--epochs", 400], [240, 320]),
        (["--epochs", 1], [1, 1]),
        (["--epochs", 0], [120, 160]),
        (["--epochs", 80, "--schedule", 120, 160], [120, 160]),
        (["--epochs", 80, "--schedule"], []),
    ],
)
def test_schedule_is_scaled_with_epochs(tmp_path, capsys, words, expected):
    given = parse(Pretraining, ["DATA", "--model-path", str(tmp_path), *map(str, words)])
    settings, _ = resolve_training(Pretraining, given)
    assert settings.schedule == expected
    said = "without --schedule" in capsys.readouterr().out
    drops = min(expected, default=0) < settings.epochs  # after the last epoch it is no drop
    assert said == ("--schedule" not in words and expected != [120, 160] and drops)


def test_two_drops_after_one_epoch_are_told(tmp_path, capsys):
    given = parse(Pretraining, ["DATA", "--model-path", str(tmp_path), "--epochs", "2"])
    resolve_training(Pretraining, given)
    assert "the learning rate drops after epoch 1 (2 times)\n" in capsys.readouterr().out


def test_a_cosine_schedule_has_no_drops(tmp_path, capsys):
    given = parse(Pretraining, ["DATA", "--model-path", str(tmp_path), "--epochs", "9", "--cos"])
    resolve_training(Pretraining, given)
    assert "drops" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], [5, 7]), (["--epochs", "20"], [10, 14]), (["--epochs", "20", "--schedule", "3"], [3])],
)
def test_a_student_scales_its_teachers_schedule(tmp_path, words, expected):
    given = parse(Distillation, ["DATA", "--savedir", "x", "--model-path", str(tmp_path), *words])
    teacher = {"arch": "conv4", "epochs": 10, "schedule": [5, 7]}
    assert resolve_training(Distillation, given, teacher)[0].schedule == expected


@pytest.mark.parametrize("schedule", [[120, 160], [1, 1]])
def test_the_student_of_an_untrained_encoder_has_the_usual_shares(tmp_path, schedule):
    """A checkpoint of --epochs 0; earlier versions recorded drops after epoch 1."""
    words = ["DATA", "--savedir", "x", "--model-path", str(tmp_path), "--epochs", "20"]
    teacher = {"arch": "conv4", "epochs": 0, "schedule": schedule}
    settings, _ = resolve_training(Distillation, parse(Distillation, words), teacher)
    assert settings.schedule == ([12, 16] if schedule[0] > 1 else [1, 1])


def test_a_resumed_run_keeps_its_schedule(chain, data, tmp_path, capsys, monkeypatch):
    shutil.copytree(chain.pretrained, tmp_path / "a")
    assert load_checkpoint(tmp_path / "a")["args"]["schedule"] == [1, 1]  # of its two epochs
    argv = ["main_moco", data, "--model_path", tmp_path / "a", *TINY, "--epochs", 3]
    error = refused(capsys, monkeypatch, *argv, "--schedule", 2)
    assert "--schedule 2 conflicts with" in error and "--schedule 1 1" in error
    call(*argv)
    assert load_checkpoint(tmp_path / "a")["args"]["schedule"] == [1, 1]
    assert "a resumed run keeps its --schedule, 1 1" in capsys.readouterr().out


def notes(cls, images, *words):
    given = parse(cls, ["DATA", "--model-path", "x", *map(str, words)])
    return " ".join(notes_on_length(resolve(cls, given, {"moco_dim": 128}), images))


def test_too_short_for_the_queue():
    """A step of 16 images makes 16 keys, for a queue of 1280."""
    assert "makes 1,248 keys" in notes(Pretraining, 208, "--epochs", 6, "--schedule")
    assert notes(Pretraining, 208, "--epochs", 7, "--schedule") == ""
    assert notes(Pretraining, 208, "--epochs", 0) == ""


def test_too_short_for_the_schedule_and_for_dic():
    assert "the first one after epoch" in notes(Pretraining, 999, "--epochs", 120)
    assert notes(Pretraining, 999, "--epochs", 121) == ""
    assert notes(Pretraining, 999, "--epochs", 120, "--cos") == ""
    dic = ["--savedir", "x", "--schedule", "--correction", "dic", "--epochs"]
    assert "DIC corrects nothing" in notes(Distillation, 999, *dic, 10)
    assert notes(Distillation, 999, *dic, 11) == ""
