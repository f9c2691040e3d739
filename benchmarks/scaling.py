"""Measure how stage (a) scales with processes and images.

    python -m benchmarks.scaling                             1 and 2 processes; 1k to 1M images
    python -m benchmarks.scaling --counts 1000 10000 --out results.json

Each measurement is a run of main_moco.py: two epochs, of which the second counts, or with many
images none, which does all that comes before the first step. Images are small PNG files, most of
them hard links, but listed, checked and decoded one by one. The first run on a data folder creates
the cache of decoded images, the second uses it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import InputError
from common.files import require_writable
from plots.read import read_log
from trainer import cli
from trainer.log import LOG
from trainer.provenance import REPOSITORY, provenance
from trainer.settings import positive

from . import make_parser, save, settings_of
from .tables import images_table, processes_table
from .throughput import peak_gb

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


def measure(
    args: argparse.Namespace, data: Path, folder: Path, processes: int = 1, epochs: int = 0
) -> dict:
    """Run main_moco.py on `data`; return the seconds it took besides its `epochs`, the peak memory
    of its largest process and, if there are epochs, the images per second of the last.

    Raises InputError if the run fails.
    """
    run = folder / "run"
    flags = [
        data, "--base-classes", "common", "--rare-classes", "rare1", "rare2", "--model-path", run,
        "--overwrite", "--cache", folder / "cache", "--epochs", epochs, "--arch", args.arch,
        "--image-size", args.image_size, "-b", args.batch_size, "-j", args.workers, "--device",
        args.device, "--no-compile", "--allow-duplicates",  # links to few images
    ]  # fmt: skip
    if processes > 1:
        flags += ["--multiprocessing-distributed", "--nproc", processes]
    command = [sys.executable, "main_moco.py", *map(str, flags)]
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        error = process.stderr.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise InputError(f"a run failed: {error.strip()[-500:]}")
    trained = [values for values in read_log(run / LOG)[1].values() if "seconds" in values]
    measured = {
        "seconds": round(seconds - sum(values["seconds"] for values in trained), 2),
        "memory_gb": round(peak_gb(usage), 3),
    }
    if trained:
        measured["images_per_second"] = round(trained[-1]["images_per_second"], 1)
    return measured


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
    add("--steps", type=positive, default=60, help="steps of an epoch with several processes")
    add("--out", type=Path, metavar="FILE", help="JSON file for the results")
    return arg_parser


def main() -> None:
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
        few = folder / "few"
        make_data(few, args.batch_size * args.steps)
        measure(args, few, folder)  # warm-up: creates the cache
        for _ in tqdm(range(args.turns), desc="processes", unit="turn"):
            for n in args.processes:
                result["processes"][str(n)].append(measure(args, few, folder, n, epochs=2))
        for count in tqdm(args.counts, desc="images"):
            make_data(folder / str(count), count)
            first, again = (measure(args, folder / str(count), folder) for _ in range(2))
            result["images"][str(count)] = {"without cache": first, "with cache": again}
    print(processes_table(result), images_table(result), sep="\n\n")
    save(result, args.out)


if __name__ == "__main__":
    cli.run(main)
