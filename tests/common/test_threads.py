"""How threads wait."""

import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.mark.parametrize(
    "module", ["main_moco", "main_distill", "generate_pseudo", "baselines.srl"]
)
def test_threads_do_not_spin(module):
    """The variable is set when torch is loaded; the user's own value stays."""
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "            sys.exit()\n"
        f"sys.meta_path.insert(0, Finder())\nimport {module}"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "passive\n"), ({"OMP_WAIT_POLICY": "active"}, "active\n")):
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env={**environment, **given},
            capture_output=True, text=True,
        )  # fmt: skip
        assert run.stdout == expected, run.stderr
