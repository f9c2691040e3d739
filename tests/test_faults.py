"""A few of the faults of tests/faults.py."""

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
    assert counts["killed"] == 2 and counts["restarts that resumed"] >= 3
    assert counts["identical to an uninterrupted run"] >= 1
