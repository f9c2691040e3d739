"""Each corrupted file is read as valid or refused in one line."""

import re
import subprocess
import sys

import pytest

from conftest import REPOSITORY

# The cache is made again; few random folders are refused.
NEVER = ("cache", "own folders", "papsmear folders", "oct folders", "isic folders", "tables")


@pytest.mark.parametrize("number", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_fuzzing(number):
    command = [sys.executable, "tests/bad_files.py", "--number", str(number)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = re.findall(rf"^\| (\w.*) \| {number} \| (\d+) \| \d+ \| 0 \|$", ran.stdout, re.M)
    assert len(rows) == 19
    assert all(int(refused) or kind in NEVER for kind, refused in rows)
