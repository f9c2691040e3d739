"""Settings: one field defines a flag and the validation of files."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from common.errors import InputError
from conftest import TINY, call, refused
from datasets.pseudo import load_pseudo_labels
from moco import config
from moco.checkpoint import load_checkpoint
from moco.inherit import teacher_settings
from trainer.checkpoint import CHECKPOINT
from trainer.flags import parse, parser_of
from trainer.settings import (
    Settings,
    require_fixed,
    require_same_setting,
    resolve,
    setting,
    shown,
    with_default,
)


@dataclass(frozen=True, kw_only=True)
class Speed(Settings):
    """how fast"""

    rate: float = setting(0.5, "the rate", low=0, below=1, fixed=True, inherited="default")
    steps: list[int] = setting([3, 4], "some steps", low=0)
    fast: bool = setting(None, "be fast", negatable=True, auto="where it can be")


@dataclass(frozen=True, kw_only=True)
class Machine(Settings):
    """the machine"""

    quick: bool = setting(None, "be quick", fixed=True, auto="where it can be")


@dataclass(frozen=True, kw_only=True)
class Small(Speed):
    """a script"""

    description = "Does little."
    inherits = "the other"

    folder: Path = setting(help="where", positional=True)
    kind: Literal["a", "b"] = setting("a", "which", inherited="always")
    aliases: list[str] | None = setting(None, "some names", metavar="NAME", former="names")


def test_parse_returns_only_given_settings():
    assert parse(Small, ["x"]) == {"folder": Path("x")}
    given = parse(Small, ["x", "--rate=0", "--steps", "--no-fast", "--aliases", "p", "q"])
    assert given == {
        "folder": Path("x"), "rate": 0.0, "steps": [], "fast": False, "aliases": ["p", "q"],
    }  # fmt: skip
    twice = parse(Small, ["x", "--aliases", "p", "--steps", "1", "--aliases", "q", "--steps", "2"])
    assert twice["aliases"] == ["p", "q"] and twice["steps"] == [2]


def test_names_are_compared_as_people_read_them_and_paths_are_not():
    decomposed = "e\u0301"
    flags = ["data", "--model-path", "m", "--base-classes", f" {decomposed} "]
    given = parse(config.Pretraining, [*flags, "--weights", f"{decomposed}/w.pth"])
    assert given["base_classes"] == ["é"] and given["weights"] == f"{decomposed}/w.pth"
    recorded = config.Pretraining.complete(given)
    assert recorded["weights"] == given["weights"] and recorded["base_classes"] == ["é"]
    older = config.Pretraining.complete({"rare_classes": [decomposed]})
    assert older["rare_classes"] == ["é"]


@dataclass(frozen=True, kw_only=True)
class Anywhere(Settings):
    folder: Path | None = setting(None, "where, if anywhere", positional=True)


def test_optional_positional():
    assert parse(Anywhere, []) == {} and parse(Anywhere, ["x"]) == {"folder": Path("x")}
    assert resolve(Anywhere, parse(Anywhere, [])).folder is None


def test_precedence_of_given_inherited_auto_and_default():
    settings = resolve(Small, {"folder": Path("x")}, {"fast": True}, {"rate": 0.2, "steps": [9]})
    assert settings.record() == {
        "folder": "x", "rate": 0.2, "steps": [3, 4], "fast": True, "kind": "a", "aliases": None,
    }  # fmt: skip
    settings = resolve(
        Small, {"folder": Path("x"), "rate": 0.1}, inherited={"rate": 0.2, "kind": "b"}
    )
    assert settings.rate == 0.1 and settings.kind == "b"
    with pytest.raises(InputError, match="--kind a conflicts with F, created with --kind b"):
        resolve(Small, {"folder": Path("x"), "kind": "a"}, inherited={"kind": "b"}, where="F")
    with pytest.raises(FrozenInstanceError):
        settings.rate = 0.3


def test_help_shows_groups_and_defaults():
    text = " ".join(parser_of(Small).format_help().split())
    for message in ("how fast:", "the rate (default: the other's)", "some steps (default: 3 4)",
                 "be fast (default: where it can be)", "{a,b}"):  # fmt: skip
        assert message in text


@pytest.mark.parametrize(
    "value, message",
    [
        ({"rate": 1.0}, r"--rate must be in \[0, 1\), got 1.0"),
        ({"rate": float("nan")}, "--rate must be in"),
        ({"rate": "fast"}, "--rate is 'fast'"),
        ({"rate": True}, "--rate is True"),
        ({"steps": 3}, "--steps is 3"),
        ({"steps": [3, -1]}, "--steps must be at least 0, got -1"),
        ({"kind": "c"}, "--kind must be one of a, b, got c"),
        ({"fast": 1}, "--fast is 1"),
        ({"rate": None}, "--rate is None"),
    ],
)
def test_invalid_values_in_files(value, message):
    with pytest.raises(ValueError, match=message):
        Small.complete({"folder": "x", **value})


def test_missing_settings_have_defaults():
    completed = Small.complete({"folder": "x", "of another age": 1})
    assert completed == {
        "folder": "x", "rate": 0.5, "steps": [3, 4], "fast": None, "kind": "a", "aliases": None,
    }  # fmt: skip
    require_fixed(Small, {"rate": 0.5}, {"folder": "x"}, "F")
    require_fixed(Machine, {"quick": True}, {}, "F")  # a file that is older than the setting
    with pytest.raises(InputError, match="--rate 0.7 conflicts with F, created with --rate 0.5"):
        require_fixed(Small, {"rate": 0.7}, {"folder": "x"}, "F")


def test_a_setting_of_another_name_in_older_files():
    for name in ("names", "aliases"):
        assert Small.complete({name: ["p"]})["aliases"] == ["p"]
    assert Small.complete({"names": ["p"], "aliases": ["q"]})["aliases"] == ["q"]
    with pytest.raises(ValueError, match="--aliases is 'p'"):
        Small.complete({"names": "p"})


def test_another_default():
    @dataclass(frozen=True, kw_only=True)
    class Faster(Speed):
        rate: float = with_default(Speed, "rate", 0.9)

    assert resolve(Faster, {}).rate == 0.9 and Faster.fields()["rate"].group is Speed


@dataclass(frozen=True, kw_only=True)
class Newer(config.Pretraining):
    """main_moco.py, tomorrow"""

    sparkle: int = setting(3, "how much it sparkles", low=0, fixed=True, inherited="default")


@dataclass(frozen=True, kw_only=True)
class NewerStudent(config.Distillation):
    """main_distill.py, tomorrow"""

    sparkle: int = setting(3, "how much it sparkles", low=0, fixed=True, inherited="default")


def test_a_new_setting_touches_one_place(chain, data, tmp_path, monkeypatch, capsys):
    """Older checkpoints and pseudo labels get its default: they can be resumed, distilled and
    tested, and are refused only if it is given another value."""
    for cls, name, stage in (
        (Newer, "Pretraining", "moco"),
        (NewerStudent, "Distillation", "distill"),
    ):
        made = config.STAGES[stage]
        monkeypatch.setitem(
            config.STAGES, stage,
            config.Stage(made.name, made.title, cls, made.classifies, made.untrained),
        )  # fmt: skip
        monkeypatch.setattr(config, name, cls)
    again = [data, "--resume", chain.pretrained, *TINY]
    call("main_moco", *again, "--epochs", 3, "--model_path", tmp_path / "a")
    assert load_checkpoint(tmp_path / "a")["args"]["sparkle"] == 3
    student = [data, "--savedir", chain.labels, "--model_path", tmp_path / "d", "-j", 0]
    call("main_distill", *student, "--epochs", 1, "--sparkle", 5)
    assert load_checkpoint(tmp_path / "d")["args"]["sparkle"] == 5
    scores = tmp_path / "scores"
    call("test", data, "--resume", chain.student, "--load_cla", "-j", 0, "--output", scores)
    again += ["--model_path", tmp_path / "b", "--sparkle", 4]
    line = refused(capsys, monkeypatch, "main_moco", *again)
    assert "--sparkle 4 conflicts with" in line and "created with --sparkle 3" in line


def test_older_files(chain, tmp_path):
    """A file without a newer setting reads as if it had its default."""
    checkpoint = torch.load(chain.student / CHECKPOINT, weights_only=True)
    del checkpoint["args"]["dic_scale"], checkpoint["args"]["bn_groups"]
    torch.save(checkpoint, tmp_path / CHECKPOINT)
    args = load_checkpoint(tmp_path)["args"]
    assert args["dic_scale"] == 1.0 and args["bn_groups"] == 4
    _, labels = load_pseudo_labels(chain.labels)
    teacher = {**labels.about["teacher"]}
    del teacher["moco_t"]
    assert teacher_settings(teacher, chain.labels)["moco_t"] == 0.07
    assert isinstance(labels.probabilities, np.ndarray)
    del teacher["arch"]
    with pytest.raises(InputError, match="is invalid: missing setting arch"):
        teacher_settings(teacher, chain.labels)


def test_require_match_shows_both_values():
    settings = config.Labelling(
        data=Path(), resume=Path(), savedir=Path(), arch="resnet12", augnum=5, amp=False
    )
    settings.require_match({"arch": "resnet12", "n_way": 3, "k_shot": 5}, "here")
    with pytest.raises(InputError, match="--arch resnet12 conflicts with here, .*--arch conv4"):
        settings.require_match({"arch": "conv4"}, "here")


def test_settings_are_shown_by_flags_that_exist():
    fields = {**config.Labelling.fields(), **config.Testing.fields()}
    assert not fields["normalize"].about.negatable and fields["teacher"].about.negatable
    assert shown(fields["normalize"], False) == "without --normalize"
    assert shown(fields["n_way"], None) == "without --n-way"
    assert shown(fields["teacher"], False) == "--no-teacher"
    with pytest.raises(InputError, match="^--normalize conflicts with here, created without --nor"):
        require_same_setting(fields["normalize"], True, False, "here")


@dataclass(frozen=True, kw_only=True)
class Either(Settings):
    folder: Path = setting(help="where", positional=True, flags=("--in-dir",), metavar="DIR")
    rate: float = setting(0.1, "the rate")


@pytest.mark.parametrize(
    "words", [["x"], ["--in_dir", "x"], ["x/", "--in-dir", "x"], ["--in-dir=x", "x"]]
)
def test_positional_argument_also_as_a_flag(words):
    for argv in (["--rate", "0.2", *words], [*words, "--rate", "0.2"]):
        assert parse(Either, argv) == {"folder": Path("x"), "rate": 0.2}


@pytest.mark.parametrize(
    "words, message",
    [
        (["x", "--in-dir", "y"], "DIR is x and also --in-dir y; give one of them"),
        ([], "required: DIR"),
    ],
)
def test_positional_argument_twice_or_missing(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(Either, words)
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert "where; also as --in-dir DIR" in " ".join(parser_of(Either).format_help().split())


@pytest.mark.parametrize(
    "words, says",
    [
        (["x", "--rat", "1"], "arguments: --rat 1; nearest to --rat: --rate"),
        (["x", "--in_dirr=y"], "arguments: --in-dirr=y; nearest to --in-dirr: --in-dir"),
        (["x", "--zzzz", "1"], "arguments: --zzzz 1 ("),
        (["--rate", "x", "--rat", "1"], "must be a number, got 'x' ("),
    ],
)
def test_the_nearest_flag_is_named(words, says, capsys):
    with pytest.raises(SystemExit):
        parse(Either, words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, wrong, right",
    [
        (config.Pretraining, "--base-clases", "--base-classes"),
        (config.Testing, "--shots", "--k-shot"),
        (config.Testing, "--no-teachers", "--no-teacher"),
    ],
)
def test_the_nearest_flag_of_the_scripts(settings, wrong, right, capsys):
    with pytest.raises(SystemExit):
        parse(settings, ["x", "--resume", "y", "--model-path", "z", wrong])
    assert f"nearest to {wrong}: {right}" in capsys.readouterr().err


def test_the_nearest_flag_of_a_required_one(capsys):
    with pytest.raises(SystemExit):
        parse(config.Testing, ["x", "--resum", "y"])
    assert "required: --resume; nearest to --resum: --resume (" in capsys.readouterr().err
