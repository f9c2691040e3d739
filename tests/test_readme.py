"""What the README says to type can be typed."""

import functools
import re
import shlex

import pytest

from conftest import REPOSITORY, SETTINGS, load_script
from trainer.settings import parser_of

README = (REPOSITORY / "README.md").read_text()
PARSERS = {
    **{
        (f"-m {name}" if "." in name else f"{name}.py"): functools.partial(parser_of, cls)
        for name, cls in SETTINGS.items()
    },
    "-m reproduction": load_script("reproduction.__main__").make_parser,
    "-m plots": functools.partial(parser_of, load_script("plots.__main__").Drawing),
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
    known = " ".join(make().format_help() for make in PARSERS.values())
    for flag in set(re.findall(r"(?<=`)--[a-z0-9_-]+", README)):
        assert flag.replace("_", "-") in known, flag


def test_scripts_it_names_exist():
    for script in re.findall(r"scripts/[\w/]+\.(?:sh|sbatch)", README):
        assert (REPOSITORY / script).is_file()
