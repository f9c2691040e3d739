"""Flags: both spellings, true defaults in the help, and none that nothing reads."""

import argparse
import re

import pytest

from conftest import TINY, call
from moco import config
from trainer import cli

PARSERS = {
    "main_moco": (config.pretraining_parser, ["DATA", "--model_path", "OUT"]),
    "generate_pseudo": (
        config.labelling_parser,
        ["--datadir", "DATA", "--resume", "A", "--savedir", "OUT"],
    ),
    "main_distill": (
        config.distillation_parser,
        ["DATA", "--model_path", "OUT", "--savedir", "LABELS"],
    ),
    "test": (config.testing_parser, ["DATA", "--resume", "A"]),
    "baselines.scratch": (config.scratch_parser, ["DATA", "--model_path", "OUT"]),
    "baselines.simclr": (config.simclr_parser, ["DATA", "--model_path", "OUT"]),
    "baselines.srl": (config.srl_parser, ["DATA", "--model_path", "OUT"]),
}
EVERY_SCRIPT = pytest.mark.parametrize("script", PARSERS)
COMMANDS = {
    "main_moco": "--arch resnet12 --epochs 200 -b 16 -j 4 --dist-url tcp://localhost:10001 "
    "--multiprocessing-distributed --world-size 1 --rank 0 --moco-k 1280 DATA --model_path OUT",
    "generate_pseudo": "--arch resnet12 --n_way 3 --k_shot 5 --k_query 15 --resume A "
    "--datadir DATA --savedir OUT",
    "main_distill": "--arch resnet12 --epochs 200 -b 16 -j 4 --dist-url tcp://localhost:10002 "
    "--multiprocessing-distributed --world-size 1 --rank 0 --moco-k 1280 DATA --model_path OUT "
    "--savedir LABELS --p_label --n_way 3 --k_shot 5",
    "test": "--gpu 0 --arch resnet12 --n_way 3 --k_shot 5 --load_cla --resume A DATA",
}


def flags(parser):
    return [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]


@pytest.mark.parametrize("script", COMMANDS)
def test_the_original_commands_parse(script):
    args = PARSERS[script][0]().parse_args(COMMANDS[script].split())
    assert args.arch == "resnet12"


def test_the_papers_run_is_the_default():
    args = config.pretraining_parser().parse_args(["DATA", "--model_path", "OUT"])
    typed = config.pretraining_parser().parse_args(COMMANDS["main_moco"].split())
    same = {"multiprocessing_distributed", "dist_url"}
    assert {k: v for k, v in vars(args).items() if k not in same} == {
        k: v for k, v in vars(typed).items() if k not in same
    }
    found = {name: getattr(args, name) for name in config.FIXED if hasattr(args, name)}
    assert found == {
        "arch": "resnet12", "image_size": 224, "moco_dim": 128, "moco_k": 1280, "moco_m": 0.999,
        "moco_t": 0.07, "mlp": False, "aug_plus": False, "bn_groups": 4, "batch_size": 16,
        "lr": 0.03, "schedule": [120, 160], "cos": False, "momentum": 0.9, "wd": 1e-4,
        "amp": None, "views_by": None, "seed": 0, "base_classes": None, "rare_classes": None,
    }  # fmt: skip
    assert args.epochs == 200


def test_moco_v2():
    args = config.pretraining_parser().parse_args(
        "DATA --model_path OUT --mlp --aug-plus --cos --moco-t 0.2".split()
    )
    assert args.mlp and args.aug_plus and args.cos and args.moco_t == 0.2


@EVERY_SCRIPT
def test_hyphen_and_underscore(script):
    make, minimal = PARSERS[script]
    for action in flags(make()):
        for flag in action.option_strings:
            if not flag.startswith("--"):
                continue
            if action.nargs == 0:
                value = []
            elif action.choices:
                value = [action.choices[0]]
            else:
                fractions = ("momentum", "moco_m", "alpha", "dic_gamma", "distill_weight")
                value = ["0.5" if action.dest in fractions else "64"]
            parsed = [
                make().parse_args([*minimal, "--" + flag[2:].replace(*swap), *value])
                for swap in (("_", "-"), ("-", "_"))
            ]
            assert parsed[0] == parsed[1], flag
    assert make().parse_args(minimal) == make().parse_args(
        [word.replace("_", "-") if word.startswith("--") else word for word in minimal]
    )


@EVERY_SCRIPT
def test_a_value_may_hold_underscores_or_equals_signs(script):
    make, minimal = PARSERS[script]
    name = "model_path" if "--model_path" in minimal else "resume"
    args = make().parse_args([*minimal, f"--{name.replace('_', '-')}=my_run=x_y"])
    assert str(getattr(args, name)) == "my_run=x_y"


@EVERY_SCRIPT
def test_help_shows_true_defaults(script):
    make, minimal = PARSERS[script]
    parser, parsed = make(), make().parse_args(minimal)
    formatter = parser._get_formatter()
    shown = 0
    for action in flags(parser):
        if not action.option_strings or action.required:
            continue
        text = formatter._expand_help(action)
        said = re.search(r"\(default: (.*?)\)$", text)
        value = getattr(parsed, action.dest)
        if said and value is not None:
            assert said[1] == str(value), text
            shown += 1
        elif value is not None:
            raise AssertionError(f"{action.option_strings}: the default {value!r} is not shown")
    assert shown > 3


@EVERY_SCRIPT
def test_every_flag_is_read(script, chain, data, tmp_path, monkeypatch):
    """A tiny run of the script looks at the value of every flag that it takes."""
    read = set()

    class Recording(argparse.Namespace):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    parse = cli.ArgumentParser.parse_args
    monkeypatch.setattr(
        cli.ArgumentParser, "parse_args", lambda *how: Recording(**vars(parse(*how)))
    )

    baseline = ["--arch", "conv4", "--image-size", 32, "-j", 0, "--epochs", 1]
    if script == "baselines.srl":
        call(script, data, "--model_path", tmp_path / "teacher", *baseline)
        baseline += ["--teacher", tmp_path / "teacher"]
        read.clear()
    small = ["--epochs", 2, "-j", 0, "--correction", "dic", "--dic-interval", 1]
    argv = {
        "main_moco": [data, "--model_path", tmp_path, *TINY, "--epochs", 1],
        "generate_pseudo": ["--datadir", data, "--resume", chain.pretrained, "--savedir", tmp_path],
        "main_distill": [data, "--savedir", chain.labels, "--model_path", tmp_path, *small],
        "test": [data, "--resume", chain.pretrained, "--output", tmp_path],
        **{name: [data, "--model_path", tmp_path, *baseline] for name in PARSERS if "." in name},
    }[script]
    call(script, *argv)
    flags_of_it = {action.dest for action in flags(PARSERS[script][0]())}
    assert flags_of_it <= read, flags_of_it - read


@EVERY_SCRIPT
@pytest.mark.parametrize("wrong", [
    "--k-shto=1", "--arch=vgg", "--gpu=-1", "--device", "--device=\udcff",
])  # fmt: skip
def test_a_mistake_gets_one_line(script, wrong, capsys):
    make, minimal = PARSERS[script]
    with pytest.raises(SystemExit) as stop:
        make().parse_args([*minimal, wrong])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["inf", "9" * 400])
def test_numbers_without_end(text, capsys):
    words = ["DATA", "--model_path", "OUT", "--save-minutes", text]
    with pytest.raises(SystemExit):
        config.pretraining_parser().parse_args(words)
    assert f"{text} is out of range" in capsys.readouterr().err
    if text.isdigit():  # an integer may be as long as one likes
        words = ["DATA", "--model_path", "OUT", "--seed", text]
        assert config.pretraining_parser().parse_args(words).seed == int(text)
