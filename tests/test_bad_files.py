"""No file, however broken, gets anything but a line, or is read."""

import re
import subprocess
import sys

from conftest import REPOSITORY


def test_some_of_each_kind():
    command = [sys.executable, "tests/bad_files.py", "--number", "30"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = re.findall(r"^\| (\w.*) \| 30 \| (\d+) \| \d+ \| 0 \|$", ran.stdout, re.M)
    assert len(rows) == 13
    assert all(int(refused) or kind == "cache" for kind, refused in rows)  # that is made anew
