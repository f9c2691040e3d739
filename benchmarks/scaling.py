"""Measure how stage (a) scales with processes and images.

    python -m benchmarks.scaling                             1 and 2 processes; 1k to 1M images
    python -m benchmarks.scaling --counts 1000 10000 --out results.json

Each measurement is a separate run of main_moco.py that stops after some steps. Images are small PNG
files, most of them hard links, but listed, checked and decoded one by one. The first run on a data
folder creates the cache of decoded images, the second uses it.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import main_moco
from common.errors import InputError
from common.files import require_writable
from moco.config import Pretraining
from trainer import cli
from trainer.distributed import barrier, is_main
from trainer.provenance import provenance
from trainer.settings import at_least, positive

from . import make_parser, save, settings_of
from .tables import images_table, processes_table
from .throughput import wait

LINKS = 1000  # hard links per file; file systems allow some tens of thousands


def make_data(folder: Path, count: int, size: int = 16) -> None:
    """Create class folders with `count` base images and five images of each of two rare classes."""
    generator = np.random.default_rng(0)
    for name, images in (("common", count), ("rare1", 5), ("rare2", 5)):
        class_folder = folder / name
        class_folder.mkdir(parents=True)
        for number in range(images):
            path = class_folder / f"{number:07}.png"
            if number % LINKS == 0:
                file = path
                picture = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(picture).save(file)
            else:
                os.link(file, path)


# One measurement: main_moco.py with timed steps


WORKER = main_moco.worker  # `run_timed` puts `timed_worker` in its place


class StepLimit(Exception):
    """The requested number of steps is done."""


def timed_worker(
    steps: int, out: Path, start: float, parent: int,
    device: torch.device, settings: Pretraining, *arguments: object,
) -> None:  # fmt: skip
    """Run `main_moco.worker`, but time each step and stop after `steps`; `parent` started all."""
    times, memory, compute = [], None, main_moco.step

    def step(*batch):
        nonlocal memory
        if len(times) == steps:
            memory = memory_of_tree(parent)  # while all are running
            raise StepLimit
        values = compute(*batch)
        wait(device)
        times.append(time.time())
        return values

    main_moco.step = step
    try:
        WORKER(device, settings, *arguments)
    except StepLimit:
        barrier()  # wait for the other ranks, which measure memory, too
    if is_main():
        second_half = times[len(times) // 2 :]  # the first steps wait for workers to start
        seconds = second_half[-1] - second_half[0]
        rate = settings.batch_size * (len(second_half) - 1) / seconds
        measured = {
            "seconds_to_first_step": round(times[0] - start, 2),
            "images_per_second": round(rate, 1),
            "memory_gb": memory,
        }
        save(measured, out)


def memory_of_tree(root: int) -> float | None:
    """Return the memory of a process and its descendants in GB (PSS: shared pages count once), None
    if the system does not report it."""
    try:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                status = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                parents[int(entry.name)] = int(status[1])
        tree = {root}
        while children := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= children
        kilobytes = 0
        for pid in tree:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
                kilobytes += int(line.split()[1]) if line.startswith("Pss:") else 0
        return round(kilobytes * 1024 / 1e9, 3)
    except OSError:
        return None


def measure(args: argparse.Namespace, data: Path, processes: int, folder: Path) -> dict:
    """Run some steps of main_moco.py on `data` in a separate process; return its measurements."""
    out, run = folder / "measured.json", folder / "run"
    flags = [
        str(data), "--base-classes", "common", "--rare-classes", "rare1", "rare2",
        "--model-path", str(run), "--overwrite", "--cache", str(folder / "cache"),
        "--epochs", "100000", "--arch", args.arch, "--image-size", str(args.image_size),
        "-b", str(args.batch_size), "-j", str(args.workers), "--print-freq", "1000000",
        "--device", args.device, "--no-compile", "--allow-duplicates",  # links to few images
    ]  # fmt: skip
    if processes > 1:
        flags += ["--multiprocessing-distributed", "--nproc", str(processes)]
    command = [sys.executable, "-m", "benchmarks.scaling", "--measure", str(args.steps), str(out)]
    command += [repr(time.time()), *flags]
    result = subprocess.run(command, capture_output=True, encoding="utf-8")
    if result.returncode or not out.exists():
        raise InputError(f"a run failed: {result.stderr.strip()[-500:]}")
    measured = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return measured


def run_timed(steps: str, out: str, start: str, *flags: str) -> None:
    """Run `main_moco.main` with `timed_worker` as its worker, in the child process of `measure`."""
    timing = int(steps), Path(out), float(start), os.getpid()
    main_moco.worker = functools.partial(timed_worker, *timing)
    main_moco.main(list(flags))


def parser() -> argparse.ArgumentParser:
    arg_parser = make_parser(__doc__)
    add = arg_parser.add_argument
    add("--device", default="auto")
    add("--counts", type=positive, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    add("--processes", type=positive, nargs="*", default=[1, 2])
    add("--turns", type=positive, default=3, help="runs per number of processes")
    add("--arch", default="conv4")
    add("--image-size", type=int, default=32)
    add("-b", "--batch-size", type=int, default=16)
    add("-j", "--workers", type=int, default=4)
    add("--steps", type=at_least(4), default=60)
    add("--out", type=Path, metavar="FILE", help="JSON file for the results")
    return arg_parser


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        return run_timed(*sys.argv[2:])
    args = parser().parse_args()
    if args.out:
        require_writable(args.out.parent)  # fail early
    result = {
        "made_by": provenance(),
        "settings": settings_of(args),
        "processes": {str(n): [] for n in args.processes},
        "images": {},
    }
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        # Enough images that the timed steps do not include the end of an epoch.
        make_data(folder / "few", args.batch_size * (args.steps + 2))
        measure(args, folder / "few", 1, folder)  # warm-up: creates the cache
        for _ in tqdm(range(args.turns), desc="processes", unit="turn"):
            for n in args.processes:
                result["processes"][str(n)].append(measure(args, folder / "few", n, folder))
        for count in tqdm(args.counts, desc="images"):
            make_data(folder / str(count), count)
            first, again = (measure(args, folder / str(count), 1, folder) for _ in range(2))
            result["images"][str(count)] = {"without cache": first, "with cache": again}
    print(processes_table(result), images_table(result), sep="\n\n")
    save(result, args.out)


if __name__ == "__main__":
    cli.run(main)
