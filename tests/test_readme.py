"""Commands in the README and other pages parse; flags, links and functions in them exist."""

import functools
import re
import shlex
from pathlib import Path

import pytest

from conftest import REPOSITORY, SETTINGS, load_script
from trainer.flags import parser_of

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "results" / "README.md",
    REPOSITORY / "benchmarks" / "results" / "README.md",
]
TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text() for page in PAGES}
PARSERS = {
    **{
        (f"-m {name}" if "." in name else f"{name}.py"): functools.partial(parser_of, cls)
        for name, cls in SETTINGS.items()
    },
    "-m reproduction": load_script("reproduction.__main__").make_parser,
    "-m plots": functools.partial(parser_of, load_script("plots.__main__").Drawing),
    "-m benchmarks.throughput": load_script("benchmarks.throughput").parser,
    "-m benchmarks.scaling": load_script("benchmarks.scaling").parser,
    "scripts/export.py": load_script("scripts/export").make_parser,
}
# At the start of a line of code, or between backticks.
COMMAND = re.compile(r"(?:^    |`)python ((?:" + "|".join(PARSERS) + r") [^`\n]+)", re.M)
COMMANDS = [(page, command) for page, text in TEXTS.items() for command in COMMAND.findall(text)]
PLACEHOLDERS = {"DATA", "OUT", "NAME", "R"}
OTHERS = (  # flags of other programs, or of ours without an importable parser
    "--gres --partition --time --cpus-per-task --ntasks-per-node --ntasks --nodes --nnodes "
    "--nproc-per-node --rdzv-backend --rdzv-endpoint --signal --me --format --kills --number "
    "--shm-size --all "
    "--smoothing"  # the example of a new flag
).split()


def linked(page: str, target: str) -> Path:
    return ((REPOSITORY / page).parent / target).resolve()


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


def test_all_four_are_shown():
    shown = {command.split()[0] for page, command in COMMANDS if page == "README.md"}
    assert shown >= {f"{name}.py" for name in SETTINGS if "." not in name}


@pytest.mark.parametrize("page, command", COMMANDS)
def test_command(page, command):
    (script,) = (script for script in PARSERS if command.startswith(script + " "))
    words = shlex.split(command.removeprefix(script), comments=True)
    words = ["0" if word in ("K", "S") else word for word in words]
    PARSERS[script]().parse_args(words)
    assert not {word for word in words if word.isupper()} - PLACEHOLDERS


@pytest.mark.parametrize("page", TEXTS)
def test_links_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", TEXTS[page]):
        path = linked(page, target) if target else REPOSITORY / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_flags_exist(page):
    known = " ".join(make().format_help() for make in PARSERS.values()).split()
    known = {word.strip("[],|") for word in known}
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", TEXTS[page])) - set(OTHERS):
        assert flag.replace("_", "-") in known or page.startswith("benchmarks"), flag


def test_flags_are_spelled_with_hyphens():
    underscored = {
        (page, flag) for page, text in TEXTS.items() for flag in re.findall(r"--\w+_\w+", text)
    }
    # The README mentions once that they work as well.
    assert {page for page, _ in underscored} == {"README.md"} and len(underscored) == 3


@pytest.mark.parametrize("page", TEXTS)
def test_scripts_exist(page):
    for script in re.findall(r"(?:scripts|tests)/[\w/]+\.(?:sh|sbatch|py)", TEXTS[page]):
        assert (REPOSITORY / script).is_file(), script


def test_functions_of_the_map_exist():
    """Each name in the middle column is defined in one of the files in the right column."""
    rows = re.findall(r"^\| .+? \| (`.+?) \| (\[.+?) \|$", TEXTS["README.md"], re.M)
    assert len(rows) >= 18
    for names, links in rows:
        text = ""
        for target in re.findall(r"\]\(([^)#]+)\)", links):
            path = REPOSITORY / target
            files = path.glob("*.py") if path.is_dir() else [path]
            text += "".join(file.read_text() + f"\nclass {file.stem}:" for file in files)
        for name in re.findall(r"`([\w.]+)`", names):
            last = name.rpartition(".")[2]
            assert re.search(rf"(def|class) {last}\b", text), name


def test_requirements_are_those_of_the_package():
    lines = (REPOSITORY / "requirements-dev.txt").read_text().splitlines()
    project = (REPOSITORY / "pyproject.toml").read_text()
    needed = [line for line in lines if line and line[0] != "#"]
    assert needed and all(f'"{line}",' in project for line in needed)
