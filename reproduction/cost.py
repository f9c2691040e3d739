"""What a table costs: training epochs on the base images, and how fast this machine does them."""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError
from datasets import synthetic
from plots.read import read_log
from trainer.log import LOG
from trainer.provenance import REPOSITORY

from .plan import Job

IMAGES = 48  # three steps of the default batch


def encoder_epochs(jobs: Iterable[Job]) -> int:
    """Return the epochs that `jobs` train on the base images; support sets cost next to nothing."""
    trained = ("encoder", "meta", "student")
    return sum(job.epochs for job in jobs if job.epochs and job.name.startswith(trained))


@functools.cache
def images_per_second(arch: str, image_size: int, amp: bool, machine: Sequence[str]) -> float:
    """Measure the speed of stage (a) on synthetic images, over its second epoch.

    `machine`: flags of all commands. A step of stage (d) costs about the same. Raises InputError if
    the training fails.
    """
    print(f"measuring the training of {arch} at {image_size} pixels", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        synthetic.make(root / "data", base=IMAGES, rare=8, size=image_size, seed=0)
        command = [
            sys.executable, "main_moco.py", root / "data", "--model-path", root / "run",
            "--cache", root / "cache", "--epochs", 2, "--arch", arch, "--image-size", image_size,
            "--amp" if amp else "--no-amp", *machine,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise InputError(f"cannot measure the training of {arch}: {reason}")
        return read_log(root / "run" / LOG)[1][2]["images_per_second"]
