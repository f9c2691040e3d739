"""Stage (a) with more processes and with more images: nothing but the epoch may grow with the data.

    python -m benchmarks.scaling                             1 and 2 processes; 1k to 1M images
    python -m benchmarks.scaling --counts 1000 10000 --out results.json

Each measurement is a run of main_moco.py by itself that is stopped after some steps. Images are
small PNG files, most of them further names of a few: listed, checked and decoded one by one all the
same. The first run on a data folder makes the cache of decoded images, the second has it.
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
from common.files import atomic_write, require_writable
from common.seeding import stream_seed
from datasets.images import ImageSet
from moco import resume
from moco.builder import MoCo
from moco.config import Pretraining
from moco.train import train
from trainer import cli
from trainer.distributed import barrier, is_main
from trainer.provenance import provenance

from .throughput import options_of

LINKS = 1000  # names of a file: file systems allow some tens of thousands


def make_data(folder: Path, count: int, size: int = 16) -> None:
    """`count` base images, and five of each of two rare classes, in class folders."""
    generator = np.random.default_rng(0)
    for name, images in (("common", count), ("rare1", 5), ("rare2", 5)):
        there = folder / name
        there.mkdir(parents=True)
        for number in range(images):
            path = there / f"{number:07}.png"
            if number % LINKS == 0:
                file = path
                picture = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(picture).save(file)
            else:
                os.link(file, path)


# One measurement: main_moco.py, watched


class Enough(Exception):
    """As many steps as were asked for."""


def watched(
    started: float, steps: int, out: Path,
    device: torch.device, settings: Pretraining, base: ImageSet, groups: int, about: dict,
    source: None,
) -> None:  # fmt: skip
    """`main_moco.worker`, which notes the time of each step and stops after `steps`."""
    torch.manual_seed(stream_seed("weights", settings.seed))
    model = MoCo(**settings.encoder_pair(settings.arch), batchnorm_groups=groups)
    times = []

    memory = None

    def step(*batch):
        nonlocal memory
        if len(times) == steps:
            memory = memory_of_all(int(os.environ["SCALING_PARENT"]))  # while all are at work
            raise Enough
        values = main_moco.step(*batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.time())
        return values

    try:
        train(model, step, base, settings, resume.run_of(settings, about, source), device)
    except Enough:
        barrier()  # the loader's processes are still there, and the other ranks
    if is_main():
        middle = times[len(times) // 2 :]  # the first steps wait for workers to start
        out.write_text(
            json.dumps(
                {
                    "seconds_to_first_step": round(times[0] - started, 2),
                    "images_per_second": round(
                        settings.batch_size * (len(middle) - 1) / (middle[-1] - middle[0]), 1
                    ),
                    "memory_gb": memory,
                }
            )
        )


def memory_of_all(parent: int) -> float | None:
    """What a process and all that descend from it take of the memory, in GB, pages that several
    have shared out among them. None where the system does not say."""
    try:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(status[1])
        family = {parent}
        while more := {pid for pid, of in parents.items() if of in family} - family:
            family |= more
        kilobytes = 0
        for pid in family:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                kilobytes += int(line.split()[1]) if line.startswith("Pss:") else 0
        return round(kilobytes * 1024 / 1e9, 3)
    except OSError:
        return None


def measure(how: argparse.Namespace, data: Path, processes: int, folder: Path) -> dict:
    """Run main_moco.py on `data`, in a process of its own, until it has taken some steps."""
    out, run = folder / "measured.json", folder / "run"
    flags = [
        str(data), "--base-classes", "common", "--rare-classes", "rare1", "rare2",
        "--model_path", str(run), "--overwrite", "--cache", str(folder / "cache"),
        "--epochs", "100000", "--arch", how.arch, "--image-size", str(how.image_size),
        "-b", str(how.batch_size), "-j", str(how.workers), "--print-freq", "1000000",
        "--device", how.device,
    ]  # fmt: skip
    if processes > 1:
        flags += ["--multiprocessing-distributed", "--nproc", str(processes)]
    command = [sys.executable, "-m", "benchmarks.scaling", "--measure", str(how.steps), str(out)]
    started = ["--started", repr(time.time())]
    ended = subprocess.run([*command, *started, "--", *flags], capture_output=True, text=True)
    if ended.returncode or not out.exists():
        raise InputError(f"a run failed: {ended.stderr.strip()[-500:]}")
    found = json.loads(out.read_text())
    out.unlink()
    return found


def run_watched(argv: list[str]) -> None:
    """The child of `measure`: `main_moco.main`, with `watched` in its worker's place."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("STEPS", "FILE"))
    parser.add_argument("--started", type=float)
    parser.add_argument("flags", nargs="*")
    given = parser.parse_args(argv)
    steps, out = given.measure
    os.environ["SCALING_PARENT"] = str(os.getpid())
    main_moco.worker = functools.partial(watched, given.started, int(steps), Path(out))
    main_moco.main(given.flags)


def parser() -> argparse.ArgumentParser:
    described = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    found.add_argument("--device", default="auto")
    found.add_argument(
        "--counts", type=cli.positive, nargs="*", default=[1000, 10_000, 100_000, 1_000_000]
    )
    found.add_argument("--processes", type=cli.positive, nargs="*", default=[1, 2])
    found.add_argument("--turns", type=cli.positive, default=3, help="of each number of processes")
    found.add_argument("--arch", default="conv4")
    found.add_argument("--image-size", type=int, default=32)
    found.add_argument("-b", "--batch-size", type=int, default=16)
    found.add_argument("-j", "--workers", type=int, default=4)
    found.add_argument("--steps", type=cli.number(int, 4), default=60)
    found.add_argument("--out", type=Path, metavar="FILE", help="JSON file for all numbers")
    return found


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        return run_watched(sys.argv[1:])
    how = parser().parse_args()
    if how.out:
        require_writable(how.out.parent)  # before minutes are spent
    result = {
        "made_by": provenance(),
        "settings": options_of(how),
        "processes": {str(n): [] for n in how.processes},
        "images": {},
    }
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        # One epoch, so that its end is not among the steps that are timed.
        make_data(folder / "few", how.batch_size * (how.steps + 2))
        measure(how, folder / "few", 1, folder)  # not counted: it makes the cache
        for _ in tqdm(range(how.turns), desc="processes", unit="turn"):
            for n in how.processes:
                result["processes"][str(n)].append(measure(how, folder / "few", n, folder))
        for count in tqdm(how.counts, desc="images"):
            make_data(folder / str(count), count)
            first, again = (measure(how, folder / str(count), 1, folder) for _ in range(2))
            result["images"][str(count)] = {"without cache": first, "with cache": again}
    print(json.dumps(result, indent=1))
    if how.out:
        with atomic_write(how.out) as file:
            file.write(json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    cli.run(main)
