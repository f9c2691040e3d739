"""Do the fast ways train as well as the plain one? Short runs of stage (a) on real images.

    python -m benchmarks.accuracy DATA --out runs.jsonl         plain and fast, three seeds
    python -m benchmarks.accuracy --draw benchmarks/results/accuracy.png --out runs.jsonl

A run is a mode and a seed: the loss of each epoch, and the accuracy of a logistic regression on ten
5-shot tasks (seeds 0 to 9), which say how good the encoder is and choose nothing. Each run adds a
line to the file; those that it has are not made again. Plain is benchmarks/plain.py; the rest is
main_moco.py with the flags of the mode, see MODES.
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
from common.errors import InputError
from common.files import require_writable
from common.seeding import stream_seed
from datasets import Collection, open_dataset
from datasets.episode import draw_task
from moco.checkpoint import load_checkpoint
from moco.evaluate import FrozenEncoder
from moco.loader import EpochBatches, training_loader
from moco.scores import score
from plots.draw import DASHES, RUN_COLORS, STYLE, pyplot
from plots.read import read_log
from reproduction.table import mean_std
from trainer import cli
from trainer.distributed import pick_device, readers
from trainer.log import LOG
from trainer.provenance import provenance
from trainer.trainer import learning_rate, take_step

from .plain import PlainMoCo, plain_encoder, plain_sgd, torch_defaults

MODES = {  # what each asks of main_moco.py
    "plain": None,
    "default": "",
    "amp": "--amp",
    "batch-views": "--views batch",
    "compile": "--compile",
    "all": "--amp --compile --views batch",
}
TASKS = range(10)


def train_plain(how: argparse.Namespace, data: Collection, seed: int) -> tuple[dict, list]:
    """What `FrozenEncoder` needs of a plain run, and the loss of each epoch."""
    device = pick_device(how.device)
    torch_defaults()
    torch.manual_seed(stream_seed("weights", seed))
    model = PlainMoCo(functools.partial(plain_encoder, how.arch), batchnorm_groups=4).to(device)
    optimizer = plain_sgd(model, 0.03, 0.9, 1e-4)
    batches = EpochBatches(len(data.base), 16, seed)
    loader = training_loader(
        data.base, batches, 2, seed, how.image_size, False, "pil", readers(how.workers), device
    )
    losses = []
    for epoch in range(how.epochs):
        batches.epoch = epoch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(0.03, epoch, how.epochs, how.schedule, cos=False)
        torch.manual_seed(stream_seed("steps", seed, epoch, 0))
        model.train()
        steps = [
            take_step(model, main_moco.step, optimizer, views, rows, epoch, device)["loss"].detach()
            for views, rows in loader
        ]
        losses.append((sum(steps) / len(steps)).item())
    made_with = {"arch": how.arch, "moco_dim": 128, "mlp": False, "aug_plus": False}
    made_with["image_size"] = how.image_size
    return {"args": made_with, "state_dict": model.state_dict()}, losses


def train_fast(how: argparse.Namespace, mode: str, seed: int) -> tuple[dict, list]:
    """As `train_plain`, by main_moco.py with the flags of `mode`."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [how.data, "--model_path", folder, "--arch", how.arch, "--seed", seed,
                 "--image-size", how.image_size, "--epochs", how.epochs,
                 "--schedule", *how.schedule, "-j", how.workers,
                 "--device", how.device, *MODES[mode].split()]  # fmt: skip
        main_moco.main([str(flag) for flag in flags])
        _, epochs = read_log(Path(folder) / LOG)
        losses = [values["loss"] for values in epochs.values() if "loss" in values]
        return load_checkpoint(folder), losses


def accuracies(how: argparse.Namespace, checkpoint: dict, data: Collection) -> list[float]:
    """Total accuracy in each of the tasks, all encoded alike: in 32 bits."""
    device = pick_device(how.device)
    torch_defaults()
    encoder = FrozenEncoder(checkpoint, device)
    embeddings = encoder.embed(data.rare)
    row_of = {name: row for row, name in enumerate(data.rare.ids)}
    found = []
    for seed in TASKS:
        task = draw_task(data.rare, None, 5, seed)
        query = task.query(data.rare)
        f_c = encoder.fit(task.support(data.rare), augnum=5, seed=seed)
        predicted = f_c.predict(embeddings[[row_of[name] for name in query.ids]])
        found.append(score(np.array(query.labels), predicted, task.classes)["accuracy"])
    return found


def lines_of(path: Path) -> list[dict]:
    """The runs in the file, if there is one. Raises InputError if it holds other things."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path} is not a file of this benchmark's runs: {error}") from error


def draw(runs: list[dict], out: Path) -> None:
    """Loss over epochs: a colour a mode, a dash pattern a seed."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
        modes = [mode for mode in MODES if any(run["mode"] == mode for run in runs)]
        for run in sorted(runs, key=lambda run: modes.index(run["mode"])):
            number = modes.index(run["mode"])
            label = run["mode"] if run["seed"] == 0 else None
            epochs = range(1, len(run["loss"]) + 1)
            style = {"color": RUN_COLORS[number], "linestyle": DASHES[run["seed"] % len(DASHES)]}
            axes.plot(epochs, run["loss"], label=label, linewidth=0.8, **style)
        axes.set(xlabel="Epoch", ylabel="Contrastive loss")
        axes.legend()
        figure.savefig(out, dpi=200)


def summary(runs: list[dict]) -> str:
    """A Markdown row a mode: last loss and accuracy, mean (standard deviation) over the seeds."""
    lines = [
        "| mode | seeds | loss of the last epoch | 5-shot accuracy, ten tasks |",
        "|---|---|---|---|",
    ]
    for mode in MODES:
        of_mode = [run for run in runs if run["mode"] == mode]
        if of_mode:
            loss = [run["loss"][-1] for run in of_mode]
            percent = [100 * np.mean(run["accuracy"]) for run in of_mode]
            (mean, std), (percent, spread) = mean_std(loss), mean_std(percent)
            numbers = f"{mean:.3f} ({std or 0:.3f}) | {percent:.1f} ({spread or 0:.1f})"
            lines.append(f"| {mode} | {len(of_mode)} | {numbers} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    described = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    found.add_argument("data", nargs="?", type=Path, help="data folder")
    found.add_argument("--out", type=Path, required=True, metavar="FILE")
    found.add_argument(
        "--draw", type=Path, metavar="FILE", help="draw the loss curves; run nothing"
    )
    found.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    found.add_argument("--arch", default="conv4")
    found.add_argument("--image-size", type=int, default=84)
    found.add_argument("--epochs", type=int, default=20)
    found.add_argument("--schedule", nargs="*", type=int, default=[12, 16])
    found.add_argument("-j", "--workers", type=int, default=4)
    found.add_argument("--device", default="auto")
    return found


def main(argv: list[str] | None = None) -> None:
    how = parser().parse_args(argv)
    require_writable(how.out.parent)
    if how.draw:
        draw(lines_of(how.out), how.draw)
        print(f"written: {how.draw}")
    elif how.data is None:
        raise InputError("the data folder is needed")
    else:
        names = ("arch", "image_size", "epochs", "schedule")
        settings = {name: getattr(how, name) for name in names}
        data = open_dataset(how.data)
        if others := [run for run in lines_of(how.out) if run["settings"] != settings]:
            raise InputError(f"{how.out} has runs of other settings: {others[0]['settings']}")
        for seed in how.seeds:
            for mode in how.modes:
                about = {"mode": mode, "seed": seed, "settings": settings}
                if any(about.items() <= run.items() for run in lines_of(how.out)):
                    continue
                started = time.time()
                if mode == "plain":
                    checkpoint, losses = train_plain(how, data, seed)
                else:
                    checkpoint, losses = train_fast(how, mode, seed)
                line = {
                    **about,
                    "loss": [round(loss, 5) for loss in losses],
                    "accuracy": [round(value, 5) for value in accuracies(how, checkpoint, data)],
                    "seconds": round(time.time() - started),
                    "made_by": provenance(),
                }
                with open(how.out, "a") as file:
                    file.write(json.dumps(line) + "\n")
    print(summary(lines_of(how.out)))


if __name__ == "__main__":
    cli.run(main)
