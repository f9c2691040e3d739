"""How fast training and labelling are, against the plain way, in turn and in one run.

    python -m benchmarks.throughput                          on this machine's GPU or processors
    python -m benchmarks.throughput --out results.json       and keep the numbers

Each mode has a process of its own, which holds its model; only one of them works at a time. A ratio
is that of two neighbouring turns; quoted is the median, with the lowest and highest. DropBlock is
at its final rate. Images are made up: JPEG, 600×450 as in ISIC 2018.

Modes: `plain` (benchmarks/plain.py, with views and images decoded as `--views pil --no-cache`),
`default` (the scripts without flags), and the scripts with `--amp`, `--compile`, or both.
"""

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import main_moco
from common.errors import InputError
from common.files import atomic_write, require_writable
from datasets import synthetic
from datasets.cache import cached
from datasets.images import ImageSet, image_files, image_set
from moco.builder import MoCo, Student
from moco.config import Distillation
from moco.distill import distillation_step
from moco.evaluate import encode
from moco.loader import EpochBatches, training_loader
from models import BACKBONES, build_encoder
from models.resnet12 import ANNEALING_STEPS, DropBlock
from trainer import cli
from trainer.distributed import pick_device, readers
from trainer.performance import has_bfloat16, lacks_bfloat16, prepare, sgd
from trainer.provenance import provenance
from trainer.settings import resolve
from trainer.trainer import take_step

from .plain import (
    PlainMoCo,
    PlainStudent,
    plain_encode,
    plain_encoder,
    plain_sgd,
    torch_defaults,
)
from .profiling import profile

TASKS = {
    "a": "stage (a), the step alone",
    "d": "stage (d), the step alone",
    "a+data": "stage (a) with data",
    "encode": "labelling, testing",
}
MODES = {  # what each asks of the scripts
    "plain": {},
    "default": {},
    "amp": {"amp": True},
    "compile": {"compile": True},
    "amp+compile": {"amp": True, "compile": True},
}
N_WAY = 3
# Of a dense bfloat16 step, in TFLOP/s: what a good matrix product reaches.
PEAKS = {"H100": 790, "H200": 790}


# What a mode's process does: a turn, again and again


class FixedBatches:
    """The same batch over and over: a step alone."""

    def __init__(self, steps: int, batch_size: int, image_size: int, device: torch.device):
        self.steps = steps
        self.batch_sampler = types.SimpleNamespace(batch_size=batch_size, first=0)
        views = torch.rand(2, batch_size, 3, image_size, image_size, device=device)
        self.batch = list(views), torch.arange(batch_size, device=device)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator:
        return (self.batch for _ in range(self.steps))


def make_model(how: argparse.Namespace, mode: str, task: str, device: torch.device) -> nn.Module:
    """The encoder pair of a stage, or for "encode" an encoder, ready to be timed."""
    torch.manual_seed(0)
    plain = mode == "plain"
    make_encoder = functools.partial(plain_encoder if plain else build_encoder, how.arch)
    if task == "encode":
        model = make_encoder().eval()
    elif task == "d":
        kind = PlainStudent if plain else Student
        model = kind(make_encoder, n_way=N_WAY, batchnorm_groups=how.bn_groups)
    else:
        kind = PlainMoCo if plain else MoCo
        model = kind(make_encoder, batchnorm_groups=how.bn_groups)
    for module in model.modules():
        if isinstance(module, DropBlock):
            module.steps.fill_(ANNEALING_STEPS)
    if plain:
        torch_defaults()
        return model.to(device)
    prepare(model, device, **{"amp": has_bfloat16(device), **MODES[mode]})
    return model


def make_turn(
    how: argparse.Namespace, mode: str, task: str, images: ImageSet, device: torch.device
) -> tuple[nn.Module, Callable[[], int]]:
    """A model, and what one turn does with it, which returns how many images that were."""
    model = make_model(how, mode, task, device)
    plain, workers = mode == "plain", readers(how.workers)
    if not plain and task in ("a+data", "encode"):
        images = cached(images, how.image_size, Path(images.paths[0]).parent)
    if task == "encode":
        run = plain_encode
        if not plain:
            run = functools.partial(encode, batch_size=how.encode_batch)

        def turn() -> int:
            run(model, images, how.image_size, workers=workers, device=device)
            return len(images)

        return model, turn

    step = main_moco.step
    if task == "d":
        y = F.one_hot(torch.arange(how.batch_size, device=device) % N_WAY, N_WAY).float()
        teacher = np.zeros((how.batch_size, 128), np.float32)
        nowhere = {name: Path("-") for name in ("data", "savedir", "model_path")}
        step = distillation_step(resolve(Distillation, nowhere), model, y, teacher)
    if task == "a+data":
        batches = EpochBatches(len(images), how.batch_size, seed=0)
        views_by = "pil" if plain or device.type == "cpu" else "batch"
        loader = training_loader(
            images, batches, 2, 0, how.image_size, False, views_by, workers, device
        )
    else:
        loader = FixedBatches(how.steps, how.batch_size, how.image_size, device)
    # A rate at which thousands of steps on the same batch leave the weights numbers.
    optimizer = (plain_sgd if plain else sgd)(model, lr=1e-6, momentum=0.9, wd=1e-4)

    def turn() -> int:
        model.train()
        for number, (views, rows) in enumerate(loader):
            values = take_step(model, step, optimizer, views, rows, 100, device)
            if number % 10 == 0:
                values["loss"].item()  # as the progress bar reads it, which waits for the device
        return len(loader) * how.batch_size

    return model, turn


def serve(pipe, how: argparse.Namespace, mode: str, task: str, images: ImageSet) -> None:
    """A mode's process: takes orders from `pipe` until there are none."""
    try:
        # What a script run from the shell has; this process's own default is to spawn.
        multiprocessing.set_start_method(how.start_method, force=True)
        device = pick_device(how.device)
        model, turn = make_turn(how, mode, task, images, device)
        pipe.send("ready")
        while order := pipe.recv():
            if order == "profile":
                pipe.send(profile(model, turn, device))
                continue
            started = time.perf_counter()
            count = turn()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
            memory = peak_memory(device)  # before a profile adds its own
            pipe.send({"seconds": seconds, "images": count, "memory_gb": round(memory, 3)})
    except Exception as error:
        pipe.send(error if isinstance(error, InputError) else RuntimeError(repr(error)))
        raise


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has had, in GB: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# The process that times them


def compare(how: argparse.Namespace, task: str, images: ImageSet) -> dict:
    """Turn and turn about: the seconds of each mode, memory, profile."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for mode in how.modes:
        pipes[mode], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, how, mode, task, images)))
        processes[-1].start()
        theirs.close()  # or nobody would notice its end
        answer(pipes[mode])
        ask(pipes[mode], "turn")  # not counted: the first one allocates, compiles and so on
    turns = {mode: [] for mode in how.modes}
    for _ in tqdm(range(how.turns), desc=TASKS[task], unit="turn", leave=False):
        for mode, pipe in pipes.items():
            turns[mode].append(ask(pipe, "turn"))
    profiled = [mode for mode in how.modes if how.profile and "compile" not in mode]
    shares = {mode: ask(pipes[mode], "profile") for mode in profiled}
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return {
        mode: {
            "ms_per_image": [round(1e3 * t["seconds"] / t["images"], 4) for t in turns[mode]],
            "memory_gb": turns[mode][-1]["memory_gb"],
            **({"profile": shares[mode]} if mode in shares else {}),
        }
        for mode in how.modes
    }


def ask(pipe, order: str | None):
    pipe.send(order)
    return answer(pipe)


def answer(pipe):
    try:
        found = pipe.recv()
    except EOFError:
        raise InputError("a benchmark process was killed; too little memory?") from None
    if isinstance(found, Exception):
        raise InputError(str(found))
    return found


def ratio(plain: list[float], fast: list[float]) -> str:
    """`ratios`, as they are quoted."""
    r = ratios(plain, fast)
    return f"{r['median']:.2f} ({r['low']:.2f}–{r['high']:.2f})"


def ratios(plain: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as fast, turn by turn: the median, and from where to where."""
    found = [slow / quick for slow, quick in zip(plain, fast)]
    values = {"median": statistics.median(found), "low": min(found), "high": max(found)}
    return {name: round(value, 3) for name, value in values.items()}


def flop_per_image(arch: str, image_size: int) -> int:
    """Of a forward pass. A step is worth four: the query there and (two) back, the key there."""
    encoder = build_encoder(arch).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops()


def make_images(folder: Path, count: int) -> ImageSet:
    """Made-up lesions, 600×450."""
    look = synthetic.LOOKS["MEL"]
    for number in range(count):
        lesion = synthetic.draw_lesion(look, np.random.default_rng(number), 600)
        lesion.crop((0, 75, 600, 525)).save(folder / f"{number:05}.jpg", quality=95)
    return image_set("made-up", ("?",), [(p.name, p, "?") for p in image_files(folder)])


def parser() -> argparse.ArgumentParser:
    described = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    found.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    found.add_argument("--modes", nargs="+", choices=MODES, help="default: plain, default, and on "
                       "a GPU amp+compile, on processors with bfloat16 amp")  # fmt: skip
    found.add_argument("--plain", action="store_true", help="the plain mode alone")
    found.add_argument("--arch", choices=BACKBONES, default="resnet12")
    found.add_argument("--image-size", type=int, help="default: 224 on a GPU, 112 on processors")
    found.add_argument("-b", "--batch-size", type=int, default=16)
    found.add_argument("--bn-groups", type=int, default=4)
    found.add_argument("--encode-batch", type=int, default=32, help="images encoded at a time")
    found.add_argument("--turns", type=cli.positive, default=7, help="of each mode (default 7)")
    found.add_argument("--steps", type=cli.positive, help="in a turn; default: 2, on a GPU 50")
    found.add_argument("-j", "--workers", type=int, default=4)
    found.add_argument("--device", default="auto")
    found.add_argument("--profile", action="store_true", help="and say where the time goes")
    found.add_argument("--out", type=Path, metavar="FILE", help="JSON file for all numbers")
    return found


def main(argv: list[str] | None = None) -> None:
    how = parser().parse_args(argv)
    if how.out:
        require_writable(how.out.parent)  # before minutes are spent
    device = pick_device(how.device)
    on_gpu = device.type == "cuda"
    how.image_size = how.image_size or (224 if on_gpu else 112)
    how.steps = how.steps or (50 if on_gpu else 2)
    how.encode_images = max(how.steps * how.batch_size, 64)
    how.start_method = multiprocessing.get_start_method()
    fastest = ["amp+compile"] if on_gpu else [] if lacks_bfloat16(device) else ["amp"]
    how.modes = ["plain"] if how.plain else how.modes or ["plain", "default", *fastest]
    result = {"made_by": provenance(), "settings": options_of(how), "tasks": {}}
    result["flop_per_image"] = flop_per_image(how.arch, how.image_size)
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder), how.encode_images)
        for task in how.tasks:
            count = how.encode_images if task == "encode" else how.steps * how.batch_size
            result["tasks"][task] = compare(how, task, images.take(images.ids[:count]))
            print(table(result, task), flush=True)
    if how.out:
        with atomic_write(how.out) as file:
            file.write(json.dumps(result, indent=1).encode())
        print(f"written: {how.out}")


def options_of(how: argparse.Namespace) -> dict:
    return {name: value for name, value in vars(how).items() if name != "out"}


def peak(result: dict) -> float | None:
    """What the machine of `result` could do, in TFLOP/s, if that is known."""
    machine = result["made_by"]["machine"]
    return next((value for name, value in PEAKS.items() if name in machine), None)


def table(result: dict, task: str) -> str:
    """A task's numbers, a line a mode."""
    modes = result["tasks"][task]
    lines = [f"{TASKS[task]:28}{'ms/image':>10}{'TFLOP/s':>9}{'GB':>7}   times as fast as plain"]
    for mode, found in modes.items():
        took = statistics.median(found["ms_per_image"])
        passes = 1 if task == "encode" else 7 if (mode, task) == ("plain", "d") else 4
        rate = passes * result["flop_per_image"] / took / 1e9
        line = f"  {mode:26}{took:10.2f}{rate:9.3f}{found['memory_gb']:7.2f}"
        if mode != "plain" and "plain" in modes:
            line += "   " + ratio(modes["plain"]["ms_per_image"], found["ms_per_image"])
        lines.append(line)
        shares = found.get("profile", {}).items()
        if shares:
            lines.append("    " + ", ".join(f"{part} {share:.1%}" for part, share in shares))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
