"""What made a file: the command, the commit, the versions, the machine."""

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import torchvision

from .distributed import processors

REPOSITORY = Path(__file__).resolve().parent.parent


def program() -> str:
    """Return the name of what was started: a script's, or for `python -m package` the package's."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def command() -> str:
    """What this process was started with, as one would type it."""
    return shlex.join([program(), *sys.argv[1:]])


def provenance() -> dict:
    """The command, the commit and the versions behind a file, as plain JSON types."""
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # a copy without its history
    return {
        "command": command(),
        "commit": commit,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "machine": ", ".join(
            [f"{processors()} processor cores ({torch.backends.cpu.get_cpu_capability()})"]
            + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        ),
        "job": os.environ.get("SLURM_JOB_ID"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
