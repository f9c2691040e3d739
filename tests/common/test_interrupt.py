"""Ctrl-C while a command imports torch."""

import os
import signal
import subprocess
import sys

import pytest

from conftest import REPOSITORY

COMMANDS = ["main_moco.py", "main_distill.py", "generate_pseudo.py", "test.py", "scripts/export.py",
            "-m baselines.simclr", "-m plots", "-m reproduction"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_torch_is_imported(command, tmp_path):
    """The first of the large packages is the one that is interrupted."""
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    ran = subprocess.run(
        [sys.executable, *command.split()], cwd=REPOSITORY, capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, "interrupted\n")
