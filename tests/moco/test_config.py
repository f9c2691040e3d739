"""Flags: both spellings, defaults in the help, no unused flags, ranges."""

import dataclasses
import json
import re
import shutil
from collections import OrderedDict

import pytest

from conftest import SETTINGS, TINY, call, load_script
from moco.config import Pretraining
from models import ARCHITECTURES
from trainer import flags
from trainer.flags import parse, parser_of
from trainer.settings import Settings, resolve

MINIMAL = {
    "main_moco": ["DATA", "--model_path", "OUT"],
    "generate_pseudo": ["--datadir", "DATA", "--resume", "A", "--savedir", "OUT"],
    "main_distill": ["DATA", "--model_path", "OUT", "--savedir", "LABELS"],
    "test": ["DATA", "--resume", "A"],
    **{
        name: ["DATA", "--model_path", "OUT", *(["--encoder", "A"] if "cactus" in name else [])]
        for name in SETTINGS
        if "." in name
    },
}
EVERY_SCRIPT = pytest.mark.parametrize("script", SETTINGS)
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


@EVERY_SCRIPT
def test_data_folder_by_position_or_flag(script):
    words = [word for word in MINIMAL[script] if word not in ("DATA", "--datadir")]
    forms = ["DATA", *words], [*words, "DATA"], [*words, "--datadir", "DATA"]
    first, *others = [parse(SETTINGS[script], form) for form in forms]
    assert str(first["data"]) == "DATA" and all(other == first for other in others)


@pytest.mark.parametrize("script", COMMANDS)
def test_the_original_commands_parse(script):
    assert parse(SETTINGS[script], COMMANDS[script].split())["arch"] == "resnet12"


def test_the_papers_run_is_the_default():
    by_default, typed = (
        resolve(Pretraining, parse(Pretraining, words)).record()
        for words in (MINIMAL["main_moco"], COMMANDS["main_moco"].split())
    )
    different = {k for k in typed if typed[k] != by_default[k]}
    assert different == {"multiprocessing_distributed", "dist_url"}
    assert {name: by_default[name] for name in Pretraining.names(fixed=True)} == {
        "arch": "resnet12", "image_size": 224, "weights": "none", "moco_dim": None,
        "moco_k": 1280, "moco_m": 0.999,
        "moco_t": 0.07, "mlp": False, "aug_plus": False, "bn_groups": 4, "batch_size": 16,
        "lr": 0.03, "schedule": [120, 160], "cos": False, "momentum": 0.9, "wd": 1e-4,
        "amp": None, "views_by": None, "seed": 0,
    }  # fmt: skip
    assert by_default["epochs"] == 200


def test_moco_v2():
    given = parse(Pretraining, "DATA --model_path OUT --mlp --aug-plus --cos --moco-t 0.2".split())
    assert given["mlp"] and given["aug_plus"] and given["cos"] and given["moco_t"] == 0.2


@EVERY_SCRIPT
def test_hyphen_and_underscore(script):
    cls, minimal = SETTINGS[script], MINIMAL[script]
    for field in cls.fields().values():
        if field.about.positional:
            continue
        value = [] if field.kind is bool else [field.choices[0]] if field.choices else ["0.5"]
        if field.kind is int:
            value = [str(field.about.high or 64)]
        if field.about.low and field.kind is float and field.about.low > 0.5:
            value = ["64"]
        for flag in (field.flag, *(f for f in field.about.flags if f.startswith("--"))):
            parsed = [
                parse(cls, [*minimal, "--" + flag[2:].replace(*swap), *value])
                for swap in (("_", "-"), ("-", "_"))
            ]
            assert parsed[0] == parsed[1] and field.name in parsed[0], flag
    hyphens = [word.replace("_", "-") if word.startswith("--") else word for word in minimal]
    assert parse(cls, minimal) == parse(cls, hyphens)


@EVERY_SCRIPT
def test_a_value_may_hold_underscores_or_equals_signs(script):
    minimal = MINIMAL[script]
    name = "model_path" if "--model_path" in minimal else "resume"
    given = parse(SETTINGS[script], [*minimal, f"--{name.replace('_', '-')}=my_run=x_y"])
    assert str(given[name]) == "my_run=x_y"


@EVERY_SCRIPT
def test_help_shows_true_defaults(script):
    cls = SETTINGS[script]
    text = " ".join(parser_of(cls).format_help().split()).replace("- ", "-")
    shown = 0
    for field in cls.fields().values():
        if field.default in (None, dataclasses.MISSING, False) or field.about.positional:
            continue
        value = field.default
        value = " ".join(map(str, value)) if isinstance(value, list) else value
        if cls.inherits and field.about.inherited:
            value = f"{cls.inherits}'s"
        help = " ".join(field.about.help.split()).replace("- ", "-")
        assert f"{help} (default: {value})" in text, field
        shown += 1
    assert shown > 2


@EVERY_SCRIPT
def test_every_flag_is_read(script, chain, data, tmp_path, monkeypatch):
    """A tiny run of the script reads the value of each of its flags."""
    read = set()

    class Given(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

        def get(self, name, default=None):
            read.add(name)
            return super().get(name, default)

        def __reduce__(self):  # into checkpoints
            return OrderedDict, (list(self.items()),)

    def recording(self, name):
        read.add(name)
        return object.__getattribute__(self, name)

    def record(self):  # the original reads all settings
        values = object.__getattribute__(self, "__dict__")
        return Given(json.loads(json.dumps(values, default=str)))

    monkeypatch.setattr(flags, "parse", lambda *args: Given(parse(*args)))
    monkeypatch.setattr(load_script(script), "parse", flags.parse, raising=False)
    monkeypatch.setattr(Settings, "record", record)
    # Given is none of the types that can be read again.
    monkeypatch.setattr("trainer.checkpoint.require_readable", lambda *args: None)

    baseline = ["--arch", "conv4", "--image-size", 32, "-j", 0, "--epochs", 1]
    if script == "baselines.srl":
        call(script, data, "--model_path", tmp_path / "teacher", *baseline)
        baseline += ["--teacher", tmp_path / "teacher"]
        read.clear()
    if "k_shot" in SETTINGS[script].fields() and "." in script:
        baseline += ["--k-shot", 2]
    if "cactus" in script:
        baseline += ["--encoder", chain.pretrained]
    small = ["--epochs", 2, "-j", 0, "--correction", "dic", "--dic-interval", 1]
    argv = {
        "main_moco": [data, "--model_path", tmp_path, *TINY, "--epochs", 1],
        "generate_pseudo": ["--datadir", data, "--resume", chain.pretrained, "--savedir", tmp_path],
        "main_distill": [data, "--savedir", chain.labels, "--model_path", tmp_path, *small],
        "test": [data, "--resume", chain.pretrained, "--output", tmp_path],
        **{name: [data, "--model_path", tmp_path, *baseline] for name in SETTINGS if "." in name},
        "baselines.pretrained": [data, "--model_path", tmp_path, "--weights", "none"],
    }[script]
    monkeypatch.setattr(Settings, "__getattribute__", recording)
    call(script, *argv)
    if script == "test":  # its other half
        encoder = shutil.copytree(chain.pretrained, tmp_path / "a")
        image = next(path for path in data.rglob("*.jpg"))
        call(script, data, "--resume", encoder, "--predict", image)
    compared = set(SETTINGS[script].names(inherited="always"))  # by `resolve`, with the file
    assert set(SETTINGS[script].fields()) <= read | compared


@EVERY_SCRIPT
@pytest.mark.parametrize("wrong", [
    "--k-shto=1", "--arch=vgg", "--gpu=-1", "--device", "--device=\udcff",
])  # fmt: skip
def test_an_invalid_flag_gets_one_line(script, wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(SETTINGS[script], [*MINIMAL[script], wrong])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--save-minutes", "inf"], "must be at least 0, got inf"),
        (["--save-minutes", "9" * 400], "must be at least 0, got inf"),
        (["--moco-m", "1.5"], "must be in [0, 1], got 1.5"),
        (["--momentum", "1"], "must be in [0, 1), got 1.0"),
        (["--epochs", "-1"], "must be at least 0, got -1"),
        (["--epochs", "two"], "got 'two'"),
        (["--arch", "vgg"], f"{', '.join(ARCHITECTURES)}, got vgg"),
        (["--arch", "timm/"], "timm/NAME, got timm/"),
    ],
)
def test_ranges_are_in_the_message(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(Pretraining, [*MINIMAL["main_moco"], *words])
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_integers_of_any_length():
    given = parse(Pretraining, [*MINIMAL["main_moco"], "--seed", "9" * 400])
    assert given["seed"] == int("9" * 400)


def test_datadir_where_the_data_folder_is_a_flag():
    drawing = parse(load_script("plots.__main__").Drawing, ["RUN", "--datadir", "DATA"])
    table = load_script("reproduction.__main__").make_parser().parse_args(["--datadir", "DATA"])
    assert str(drawing["data"]) == str(table.data) == "DATA"
