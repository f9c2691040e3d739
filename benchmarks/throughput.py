"""Measure the speed of training and labelling against the plain implementation.

    python -m benchmarks.throughput                          on the GPU, if any, or the CPU
    python -m benchmarks.throughput --out results.json       also save the results, after each task

Each mode has its own process and model; the processes take turns. A speedup is the ratio of two
consecutive turns, reported as median (lowest–highest). DropBlock is at its final rate. Images are
synthetic JPEG files, 600×450 as in ISIC 2018.

Modes: `plain` (benchmarks/plain.py, with data loading as by `--views pil --no-cache`), `default`
(the scripts without flags, in a run too short to be compiled), and the scripts with `--amp`,
`--compile`, or both. The results say what each mode means on this machine.
"""

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import main_moco
from common.errors import InputError
from common.files import require_writable
from datasets import synthetic
from datasets.cache import cached
from datasets.images import ImageSet, image_set
from moco.builder import MoCo, Student
from moco.config import Distillation
from moco.distill import distillation_step
from moco.evaluate import encode
from moco.loader import EpochBatches, training_loader
from models import BACKBONES, build_encoder
from models.resnet12 import ANNEALING_STEPS, DropBlock
from trainer import cli
from trainer.distributed import available_cpus, pick_device, readers
from trainer.optimizer import sgd
from trainer.performance import has_bfloat16, lacks_bfloat16, prepare
from trainer.provenance import provenance
from trainer.settings import positive, resolve
from trainer.trainer import take_step

from . import make_parser, save, settings_of
from .plain import (
    PlainMoCo,
    PlainStudent,
    plain_encode,
    plain_encoder,
    plain_sgd,
    torch_defaults,
)
from .profiling import profile
from .tables import TASKS, parts, speeds

MODES = {  # settings of the scripts
    "plain": {},
    "default": {},
    "amp": {"amp": True},
    "compile": {"compile": True},
    "amp+compile": {"amp": True, "compile": True},
}
N_WAY = 3
PROFILED_STEPS = 3
QUERIED = (
    "name", "driver_version", "memory.total", "memory.used", "power.limit", "power.draw",
    "temperature.gpu", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "clocks_throttle_reasons.active",
)  # fmt: skip


def nvidia_smi() -> dict[str, str] | None:
    """Return the state of the first GPU, None without one."""
    try:
        output = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"],
            capture_output=True, encoding="utf-8", timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(QUERIED, map(str.strip, output.partition("\n")[0].split(","))))


# In the process of a mode: repeated turns


def meaning(mode: str, device: torch.device) -> dict | None:
    """Return the settings of the scripts that `mode` means on `device`; None for plain."""
    if mode == "plain":
        return None
    views = "pil" if device.type == "cpu" else "batch"
    return {"amp": has_bfloat16(device), "compile": False, "views_by": views, **MODES[mode]}


def make_model(args: argparse.Namespace, mode: str, task: str, device: torch.device) -> nn.Module:
    """Return the encoder pair of a stage, or an encoder for "encode", ready for timing."""
    torch.manual_seed(0)
    plain = mode == "plain"
    make_encoder = functools.partial(plain_encoder if plain else build_encoder, args.arch)
    if task == "encode":
        model = make_encoder().eval()
    elif task == "d":
        cls = PlainStudent if plain else Student
        model = cls(make_encoder, n_way=N_WAY, batchnorm_groups=args.bn_groups)
    else:
        cls = PlainMoCo if plain else MoCo
        model = cls(make_encoder, batchnorm_groups=args.bn_groups)
    for module in model.modules():
        if isinstance(module, DropBlock):
            module.steps.fill_(ANNEALING_STEPS)
    if plain:
        torch_defaults()
        return model.to(device)
    settings = meaning(mode, device)
    prepare(model, device, settings["amp"], settings["compile"])
    return model


def make_steps(
    args: argparse.Namespace, mode: str, task: str, images: ImageSet, device: torch.device
) -> tuple[nn.Module, Callable[[], Iterator[int]]]:
    """Return a model and the generator of one turn, which yields the number of images of each step
    once it is done; "encode" is a single step."""
    model = make_model(args, mode, task, device)
    plain, workers = mode == "plain", readers(args.workers)
    settings = meaning(mode, device) or {"compile": False, "views_by": "pil"}
    if not plain and task in ("a+data", "encode"):
        images = cached(images, args.image_size, Path(images.paths[0]).parent)
    if task == "encode":
        encode_all = plain_encode if plain else encode

        def encoding() -> Iterator[int]:
            encode_all(model, images, args.image_size, workers=workers, device=device)
            yield len(images)

        return model, encoding

    step = main_moco.step
    if task == "d":
        y = F.one_hot(torch.arange(args.batch_size, device=device) % N_WAY, N_WAY).float()
        teacher = np.zeros((args.batch_size, 128), np.float32)
        unused = {name: Path("-") for name in ("data", "savedir", "model_path")}
        step = distillation_step(resolve(Distillation, unused), model, y, teacher)
    if task == "a+data":
        batches = EpochBatches(len(images), args.batch_size, seed=0)
        loader = training_loader(
            images, batches, 2, 0, args.image_size, False, settings["views_by"], workers, device,
            settings["compile"] and device.type == "cuda",
        )  # fmt: skip
    else:
        views = torch.rand(2, args.batch_size, 3, args.image_size, args.image_size, device=device)
        rows = torch.arange(args.batch_size, device=device)
        loader = [(list(views), rows)] * args.steps  # the same batch, to time the step only
    # So low that the weights stay finite over thousands of steps on the same batch.
    optimizer = (plain_sgd if plain else sgd)(model, lr=1e-6, momentum=0.9, wd=1e-4)

    def steps() -> Iterator[int]:
        model.train()
        for i, (views, rows) in enumerate(loader):
            values = take_step(model, step, optimizer, views, rows, 100, device)
            if i % 10 == 0:
                values["loss"].item()  # as the progress bar does; synchronises the device
            yield args.batch_size

    return model, steps


def set_up(args: argparse.Namespace, mode: str, task: str, images: ImageSet) -> None:
    """Make what this process, that of a mode, repeats: see `make_steps`."""
    global served
    # As in a script run from the shell; the default in a spawned process is to spawn.
    multiprocessing.set_start_method(args.start_method, force=True)
    device = pick_device(args.device)
    served = (*make_steps(args, mode, task, images, device), device)


def turn() -> dict:
    """Take a turn; return its seconds, its number of images and the peak memory so far in GB."""
    _, steps, device = served
    if device.type == "cuda":  # the first turn, a warm-up, takes more
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    images = sum(steps())
    wait(device)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "images": images, "memory_gb": round(peak_memory(device), 3)}


def profiled() -> dict[str, float]:
    """Return each part's share in the time of some steps, see `profile`."""
    model, steps, device = served
    return profile(model, itertools.islice(steps(), PROFILED_STEPS), device)


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process in GB, of the GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_gb(resource.getrusage(resource.RUSAGE_SELF))


def peak_gb(usage: resource.struct_rusage) -> float:
    """Return the peak memory in GB of a process, from the system's account of it."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


# In the main process


def compare(args: argparse.Namespace, task: str, images: ImageSet) -> dict:
    """Run the modes in alternating turns; return time per image, memory, clock and profile of
    each."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict] = {}
    try:
        with contextlib.ExitStack() as stack:
            processes = {mode: ProcessPoolExecutor(1, context) for mode in args.modes}
            for process in processes.values():
                stack.enter_context(process)
            started = [  # together
                process.submit(set_up, args, mode, task, images)
                for mode, process in processes.items()
            ]
            for future in started:
                future.result()
            for process in processes.values():
                process.submit(turn).result()  # warm-up: allocates, compiles and so on
            turns: dict[str, list[dict]] = {mode: [] for mode in args.modes}
            for _ in tqdm(range(args.turns), desc=TASKS[task], unit="turn", leave=False):
                for mode, process in processes.items():
                    turns[mode].append(process.submit(turn).result())
            for mode, process in processes.items():
                times = [round(1e3 * t["seconds"] / t["images"], 4) for t in turns[mode]]
                found[mode] = {"ms_per_image": times, "memory_gb": turns[mode][-1]["memory_gb"]}
                if nvidia_smi():
                    process.submit(turn).result()  # the clock drops soon afterwards
                    found[mode]["sm_clock"] = nvidia_smi()["clocks.sm"]
                if args.profile and "compile" not in mode:
                    found[mode]["profile"] = process.submit(profiled).result()
    except BrokenProcessPool:
        raise InputError("a benchmark process was killed, probably out of memory") from None
    return found


def flop_per_image(arch: str, image_size: int) -> int:
    """Return the FLOP of a forward pass; a step is worth four: query forward, backward (2), key."""
    encoder = build_encoder(arch).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops()


def make_image(folder: Path, number: int) -> None:
    """Write a synthetic lesion, 600×450."""
    lesion = synthetic.draw_lesion(synthetic.LOOKS["MEL"], np.random.default_rng(number), 600)
    lesion.crop((0, 75, 600, 525)).save(folder / f"{number:05}.jpg", quality=95)


def make_images(folder: Path, count: int) -> ImageSet:
    """Write `count` synthetic lesions, on all CPU cores."""
    with multiprocessing.Pool(available_cpus()) as pool:
        pool.map(functools.partial(make_image, folder), range(count))
    files = sorted(folder.iterdir())
    return image_set("synthetic", ("?",), [(path.name, path, "?") for path in files])


def parser() -> argparse.ArgumentParser:
    arg_parser = make_parser(__doc__)
    add = arg_parser.add_argument
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--modes", nargs="+", choices=MODES, help="default: plain, default, and "
        "amp+compile on a GPU or amp on a CPU with bfloat16")  # fmt: skip
    add("--arch", choices=BACKBONES, default="resnet12")
    add("--image-size", type=int, help="default: 224 on a GPU, 112 on the CPU")
    add("-b", "--batch-size", type=int, default=16)
    add("--bn-groups", type=int, default=4)
    add("--turns", type=positive, default=7, help="turns per mode (default 7)")
    add("--steps", type=positive, help="steps per turn (default: 2, on a GPU 50)")
    add("-j", "--workers", type=int, default=4)
    add("--device", default="auto")
    add("--profile", action="store_true", help="also profile the parts of a step")
    add("--out", type=Path, metavar="FILE", help="JSON file for the results")
    return arg_parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.out:
        require_writable(args.out.parent)  # fail early
    device = pick_device(args.device)
    on_gpu = device.type == "cuda"
    args.image_size = args.image_size or (224 if on_gpu else 112)
    args.steps = args.steps or (50 if on_gpu else 2)
    args.encode_images = max(args.steps * args.batch_size, 64)
    args.start_method = multiprocessing.get_start_method()
    fastest = ["amp+compile"] if on_gpu else [] if lacks_bfloat16(device) else ["amp"]
    args.modes = args.modes or ["plain", "default", *fastest]
    result = {
        "made_by": provenance(),
        "settings": settings_of(args),
        "modes": {mode: meaning(mode, device) for mode in args.modes},
        "flop_per_image": flop_per_image(args.arch, args.image_size),
        "tasks": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder), args.encode_images)
        for task in args.tasks:
            count = args.encode_images if task == "encode" else args.steps * args.batch_size
            result["tasks"][task] = compare(args, task, images.take(images.ids[:count]))
            print(speeds(result, [task]), flush=True)
            if args.profile:
                print(parts(result, task), flush=True)
            save(result, args.out)


if __name__ == "__main__":
    cli.run(main)
