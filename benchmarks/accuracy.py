"""Compare the accuracy of fast and plain training in short runs of stage (a) on real images.

    python -m benchmarks.accuracy DATA --out runs.jsonl         plain and fast, three seeds

A run has a mode and a seed; its results are the loss of each epoch and the accuracy of a logistic
regression on ten 5-shot tasks (seeds 0 to 9), used for reporting only. Each run adds a line to the
file; runs in the file are skipped. The mode "plain" is benchmarks/plain.py; the others are
main_moco.py with the flags in MODES.
"""

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import main_moco
from common.errors import InputError, refusing
from common.files import require_writable
from common.seeding import stream_seed
from datasets import Collection
from datasets.episode import draw_task
from datasets.open import open_data
from moco.checkpoint import load_checkpoint
from moco.evaluate import FrozenEncoder, regressions
from moco.loader import EpochBatches, training_loader
from models import default_embedding_dim
from plots.read import read_log
from reproduction.table import markdown, mean_std
from trainer import cli
from trainer.distributed import pick_device, readers
from trainer.log import LOG
from trainer.optimizer import learning_rate
from trainer.provenance import provenance
from trainer.trainer import take_step

from . import make_parser
from .plain import PlainMoCo, plain_encoder, plain_sgd, torch_defaults

MODES = {  # flags of main_moco.py
    "plain": None,
    "default": "",
    "amp": "--amp",
    "batch-views": "--views batch",
    "compile": "--compile",
    "all": "--amp --compile --views batch",
}
TASKS = range(10)


def train_plain(args: argparse.Namespace, data: Collection, seed: int) -> tuple[dict, list]:
    """Train plainly; return a checkpoint for `FrozenEncoder` and the loss of each epoch."""
    device = pick_device(args.device)
    torch_defaults()
    torch.manual_seed(stream_seed("weights", seed))
    width = default_embedding_dim(args.arch)
    make_encoder = functools.partial(plain_encoder, args.arch, width)
    model = PlainMoCo(make_encoder, width, batchnorm_groups=4).to(device)
    optimizer = plain_sgd(model, 0.03, 0.9, 1e-4)
    batches = EpochBatches(len(data.base), 16, seed)
    loader = training_loader(
        data.base, batches, 2, seed, args.image_size, False, "pil", readers(args.workers), device
    )
    losses = []
    for epoch in range(args.epochs):
        batches.epoch = epoch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(0.03, epoch, args.epochs, args.schedule, cos=False)
        torch.manual_seed(stream_seed("steps", seed, epoch, 0))
        model.train()
        steps = [
            take_step(model, main_moco.step, optimizer, views, rows, epoch, device)["loss"].detach()
            for views, rows in loader
        ]
        losses.append((sum(steps) / len(steps)).item())
    settings = {"arch": args.arch, "moco_dim": width, "mlp": False, "aug_plus": False,
                "image_size": args.image_size}  # fmt: skip
    checkpoint = {"stage": "moco", "args": settings, "state_dict": model.state_dict()}
    return checkpoint, losses


def train_fast(args: argparse.Namespace, mode: str, seed: int) -> tuple[dict, list]:
    """Train with main_moco.py and the flags of `mode`; returns the same as `train_plain`."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [args.data, "--model-path", folder, "--arch", args.arch, "--seed", seed,
                 "--image-size", args.image_size, "--epochs", args.epochs,
                 "--schedule", *args.schedule, "-j", args.workers,
                 "--device", args.device, *MODES[mode].split()]  # fmt: skip
        main_moco.main([str(flag) for flag in flags])
        _, epochs = read_log(Path(folder) / LOG)
        losses = [values["loss"] for values in epochs.values() if "loss" in values]
        return load_checkpoint(folder), losses


def accuracies(args: argparse.Namespace, checkpoint: dict, data: Collection) -> list[float]:
    """Return the total accuracy on each task, with images encoded in float32."""
    torch_defaults()
    rare, values = data.rare, []
    predict = regressions(FrozenEncoder(checkpoint, pick_device(args.device)), rare, rare)
    for seed in TASKS:
        task = draw_task(rare, None, 5, seed)
        query = task.query(rare)
        predicted = predict(task.support(rare), query)[0].argmax(axis=1)
        values.append(float((predicted == query.labels).mean()))
    return values


def read_runs(path: Path) -> list[dict]:
    """Return the runs in a file, none if it is missing. Raises InputError if it is invalid."""
    with refusing(f"{path} is not a file of benchmark runs"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


def summary(runs: list[dict]) -> str:
    """Return a Markdown table, a row per mode: mean (standard deviation) over the seeds."""
    rows = [["mode", "seeds", "loss of the last epoch", "5-shot accuracy, ten tasks"]]
    for mode in MODES:
        selected = [run for run in runs if run["mode"] == mode]
        if selected:
            loss = [run["loss"][-1] for run in selected]
            percent = [100 * np.mean(run["accuracy"]) for run in selected]
            (mean, std), (percent, spread) = mean_std(loss), mean_std(percent)
            numbers = f"{mean:.3f} ({std or 0:.3f})", f"{percent:.1f} ({spread or 0:.1f})"
            rows.append([mode, len(selected), *numbers])
    return markdown(rows)


def parser() -> argparse.ArgumentParser:
    arg_parser = make_parser(__doc__)
    add = arg_parser.add_argument
    add("data", type=Path, help="data folder")
    add("--out", type=Path, required=True, metavar="FILE")
    add("--modes", nargs="+", default=list(MODES), choices=MODES)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--arch", default="conv4")
    add("--image-size", type=int, default=84)
    add("--epochs", type=int, default=20)
    add("--schedule", nargs="*", type=int, default=[12, 16])
    add("-j", "--workers", type=int, default=4)
    add("--device", default="auto")
    return arg_parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    require_writable(args.out.parent)
    names = ("arch", "image_size", "epochs", "schedule")
    settings = {name: getattr(args, name) for name in names}
    data = open_data(args.data)
    images = data.base.fingerprint()["sha256"]
    for run in read_runs(args.out):
        if run["settings"] != settings:
            raise InputError(f"{args.out} has runs with other settings: {run['settings']}")
        if run.get("images", images) != images:  # older files do not tell
            raise InputError(f"{args.out} has runs on other images")
    for seed in args.seeds:
        for mode in args.modes:
            key = {"mode": mode, "seed": seed, "settings": settings}
            if any(key.items() <= run.items() for run in read_runs(args.out)):
                continue
            start = time.time()
            if mode == "plain":
                checkpoint, losses = train_plain(args, data, seed)
            else:
                checkpoint, losses = train_fast(args, mode, seed)
            line = {
                **key,
                "images": images,
                "loss": [round(loss, 5) for loss in losses],
                "accuracy": [round(value, 5) for value in accuracies(args, checkpoint, data)],
                "seconds": round(time.time() - start),
                "made_by": provenance(),
            }
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print(summary(read_runs(args.out)))


if __name__ == "__main__":
    cli.run(main)
