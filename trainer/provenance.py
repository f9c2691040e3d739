"""Provenance of files: command, commit, versions and machine."""

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import torchvision

from .distributed import available_cpus

REPOSITORY = Path(__file__).resolve().parent.parent


def program() -> str:
    """Return the name of the running script, or of the package for `python -m package`."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def command() -> str:
    """Return the command line of this process, quoted for a shell."""
    return shlex.join([program(), *sys.argv[1:]])


def provenance() -> dict:
    """Return command, commit, versions, machine, job and date as JSON types. Without git, as in a
    copy of the files, the commit is that of GIT_COMMIT in the environment, if any."""
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--dirty"]
    commit: str | None
    try:
        commit = subprocess.run(
            git, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = os.environ.get("GIT_COMMIT")  # not a git repository
    return {
        "command": command(),
        "commit": commit,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "machine": ", ".join(
            [f"{available_cpus()} processor cores ({torch.backends.cpu.get_cpu_capability()})"]
            + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        ),
        "job": os.environ.get("SLURM_JOB_ID"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
