"""Text is read and written as UTF-8, whatever the locale."""

import ast
import csv
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import REPOSITORY, TINY, call, load_script
from datasets import synthetic

tracked = load_script("scripts/draw_imports").tracked
STARTERS = {"run", "Popen", "check_output", "check_call", "call"}  # of subprocess


def without_encoding(code: str) -> list[int]:
    """Return the lines of a program that open a text file, or read a process's text, in the
    encoding of the locale."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        on_path = isinstance(node.func, ast.Attribute)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        modes = [*node.args[0 if on_path else 1 :][:1], *filter(None, [given.get("mode")])]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
        is_binary = any(isinstance(text, str) and "b" in text for text in texts)
        is_mode = any(isinstance(text, str) and set(text) <= set("rwax+t") for text in texts)
        opens = name == "open" and not is_binary and (not on_path or is_mode)
        opens |= name in ("TextIOWrapper", "loadtxt", "savetxt", "genfromtxt", "FileHandler")
        opens |= name in ("TemporaryFile", "NamedTemporaryFile") and is_mode and not is_binary
        opens |= on_path and name in ("read_text", "write_text")
        opens |= name in STARTERS and bool({"text", "universal_newlines"} & given.keys())
        if opens and "encoding" not in given and None not in given:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "code, count",
    [
        ("open(p)", 1), ("open(p, 'w', newline='')", 1), ("open(p, 'wb')", 0),
        ("open(p, mode='rb')", 0), ("open(p, encoding='utf-8')", 0), ("p.open('a')", 1),
        ("p.open('rb')", 0), ("Image.open(p)", 0), ("archive.open(name)", 0), ("p.read_text()", 1),
        ("p.write_text(x, encoding='utf-8')", 0), ("write_text(p, x)", 0),
        ("subprocess.run(c, text=True)", 1),
        ("subprocess.run(c, capture_output=True)", 0), ("subprocess.run(c, encoding='utf-8')", 0),
    ],
)  # fmt: skip
def test_the_check_itself(code, count):
    assert len(without_encoding(code)) == count


def test_every_text_file_has_an_encoding():
    files = tracked(REPOSITORY)
    assert len(files) > 60
    found = [
        f"{file}:{line}"
        for file in files
        for line in without_encoding((REPOSITORY / file).read_text(encoding="utf-8"))
    ]
    assert not found, found


NAMES = ("A$1$", "p$<0.05 \\x$", "病変", "_Ø")
UNLIKE_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_in_another_locale(tmp_path):
    """Folders of classes with odd names, in a locale whose encoding is ASCII."""
    generator = np.random.default_rng(0)
    for name, look in zip(NAMES, synthetic.LOOKS.values()):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            image = synthetic.draw_lesion(look, generator, 32)
            image.save(tmp_path / "data" / name / f"{number}.png")
    data, a, labels = (tmp_path / name for name in ("data", "ä", "labels"))
    classes = ["--base-classes", *NAMES[:2], "--rare-classes", *NAMES[2:]]
    call("main_moco", data, *classes, "--model-path", a, *TINY, "--epochs", 0)
    argv = ["--datadir", data, "--resume", a, "--savedir", labels, "--n-way", 2, "--k-shot", 1]
    call("generate_pseudo", *argv, "-j", 0)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    argv = ["test.py", data, "--resume", a, "--savedir", labels, "--output", tmp_path / "out"]
    ran = subprocess.run(
        [sys.executable, *map(str, argv), "-j", "0"], cwd=REPOSITORY, capture_output=True,
        env={**os.environ, **UNLIKE_UTF8}, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "病変  " in ran.stdout and "_Ø  " in ran.stdout
    (table,) = (tmp_path / "out").glob("*.csv")
    with open(table, newline="", encoding="utf-8") as file:
        assert {row["truth"] for row in csv.DictReader(file)} == {"病変", "_Ø"}


def test_names_on_a_terminal_without_them(monkeypatch, capfd):
    from common.failures import print_any_name

    code = "from common.failures import print_any_name as p; p(); print('病', '\\udce4')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment,
                         capture_output=True)  # fmt: skip
    assert ran.stdout.split() == [rb"\u75c5", rb"\udce4"]
    print_any_name()  # where the output is no terminal or file
