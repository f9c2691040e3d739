"""A few of the faults that tests/faults.py tries by the dozen."""

import json
import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.mark.slow
def test_some_of_each(tmp_path):
    command = [sys.executable, "tests/faults.py", "--kills", "4", "--quick"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = json.loads(ran.stdout.splitlines()[-1])
    assert counts["killed"] == 2 and counts["restarts that went on"] >= 3
    assert counts["ended bit for bit as without"] >= 1
