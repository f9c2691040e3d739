"""What the README says to type can be typed."""

import re
import shlex

import pytest

from conftest import REPOSITORY, load_script
from moco import config

README = (REPOSITORY / "README.md").read_text()
PARSERS = {
    "main_moco.py": config.pretraining_parser,
    "generate_pseudo.py": config.labelling_parser,
    "main_distill.py": config.distillation_parser,
    "test.py": config.testing_parser,
    "-m baselines.scratch": config.scratch_parser,
    "-m baselines.simclr": config.simclr_parser,
    "-m baselines.srl": config.srl_parser,
    "scripts/reproduce.py": load_script("scripts/reproduce").make_parser,
    "scripts/figures.py": load_script("scripts/figures").make_parser,
    "scripts/export.py": load_script("scripts/export").make_parser,
}
COMMANDS = re.findall(r"(?:^    |`)python ((?:" + "|".join(PARSERS) + r") [^`\n]+)", README, re.M)


def test_all_four_are_shown():
    assert {command.split()[0] for command in COMMANDS} >= {s for s in PARSERS if s[0] != "-"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command):
    (script,) = (script for script in PARSERS if command.startswith(script + " "))
    words = shlex.split(command.removeprefix(script))
    PARSERS[script]().parse_args(words)
    assert not {word for word in words if word.isupper()} - {"DATA"}  # the one thing to fill in


def test_links_and_flags_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target
    known = {flag for make in PARSERS.values() for flag in make()._option_string_actions}
    assert set(re.findall(r"(?<=`)--[a-z0-9_-]+", README)) <= known


def test_scripts_it_names_exist():
    for script in re.findall(r"scripts/[\w/]+\.(?:sh|sbatch)", README):
        assert (REPOSITORY / script).is_file()
