"""The training loop of all models, which differ only in what a step computes."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError, refusing
from common.seeding import stream_seed
from datasets.images import ImageSet

from .checkpoint import CHECKPOINT, PREVIOUS, require_readable, stamp
from .config import TrainingSettings
from .distributed import (
    all_max,
    all_mean,
    average_running_statistics,
    barrier,
    gather_objects,
    in_parallel,
    is_main,
    rank,
    require_same_on_all_ranks,
    running_statistics,
    training_in,
    world_size,
)
from .log import RunLog
from .nan_guard import NanGuard
from .optimizer import learning_rate, load_moments, sgd
from .performance import prepare
from .signals import CONTINUE, SAVE, Stopped, Watch, handling

StepFn = Callable[[nn.Module, list[Tensor], Tensor, int], dict[str, Tensor]]
Loader = Iterable[tuple[list[Tensor], Tensor]]  # of (views, rows)
Values = dict[str, float]
MakeOptimizer = Callable[[nn.Module, float, float, float], torch.optim.Optimizer]


class Batches(Protocol):
    """The batch sampler of a loader: the batches of `epoch` from number `first` on."""

    epoch: int
    first: int
    batch_size: int  # over all ranks

    def __len__(self) -> int: ...


@dataclass
class Run:
    """A run's description, output and starting point.

    `about` is stored in every checkpoint and in the log's first line; `save` writes a checkpoint to
    `folder`. `load` returns the checkpoint to continue from, of the file `source`, once; `resuming`
    says that it is of the run in `folder` itself.
    """

    folder: Path
    about: dict[str, Any]
    save: Callable[[Path, dict], None]
    load: Callable[[], dict[str, Any]] | None = None
    source: Path | None = None
    resuming: bool = False
    overwrite: bool = False
    found: Any = None  # `stamp` of `folder` when the command looked at it


def nothing(epoch: int) -> Values:
    """Compute nothing after an epoch."""
    return {}


class Trainer:
    """Trains a model on the batches of a loader, writing checkpoints and a log.

    `step_fn(model, views, rows, epoch)` returns the statistics of a batch, of which "loss" is
    minimised; a loss without gradient means that the step has called backward itself.
    `optimizer(model, lr, momentum, weight_decay)` makes the optimizer; gradients with a norm above
    `clip` are scaled down to it. `loader` yields (views, rows) in the order of the sampler
    `batches`; rows index `images`. The state is `epoch`, the number of epochs done,
    `step`, the number of steps done in the current epoch, and `totals`, the sums of their
    statistics.

    Raises InputError if what `run.load` returns does not fit, or the ranks' starting points differ.
    """

    def __init__(
        self,
        model: nn.Module,
        step_fn: StepFn,
        images: ImageSet,
        batches: Batches,
        loader: Loader,
        config: TrainingSettings,
        run: Run,
        device: torch.device,
        optimizer: MakeOptimizer = sgd,
        clip: float | None = None,
    ):
        prepare(model, device, config.amp, bool(config.compile))
        self.model, self.step_fn, self.images = model, step_fn, images
        self.batches, self.loader, self.config, self.run = batches, loader, config, run
        self.device = device
        self.optimizer = optimizer(model, config.lr, config.momentum, config.wd)
        self.clip = clip
        self.guard = NanGuard(
            images, run.folder / CHECKPOINT, 1 if config.detect_anomaly else config.print_freq
        )
        self.epoch = self.step = 0
        self.totals: dict[str, Tensor] = {}
        self.part: dict[str, Any] | None = None  # the checkpoint's, until its epoch continues
        self.save_time, self.save_seconds = time.perf_counter(), 0.0  # of the last checkpoint
        start_epoch = None if run.resuming else config.start_epoch
        if run.load:
            weights_only = {"part": None} if start_epoch is not None else {}
            with refusing(f"{run.source} does not fit this run"):
                self.load_state_dict({**run.load(), **weights_only})
        if start_epoch is not None:
            self.epoch = start_epoch
        require_readable(run.about)  # now, not when an epoch is to be saved
        base = {**run.about["base"], "dataset": None}
        contents = run.about.get("contents"), run.about.get("pseudo_labels")
        settings = (config.epochs, config.lr, config.seed, base, run.about["task"], contents)
        require_same_on_all_ranks((self.epoch, self.step, *settings), run.folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the training's state for a checkpoint. Within an epoch all ranks must call it, as
        each has its own random state, running statistics and totals."""
        part = self.part
        if self.step and part is None:
            part = {"steps": self.step, "processes": gather_objects(self.rank_state())}
        return {
            "epoch": self.epoch,
            "part": part,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. Raises ValueError or torch's error if it does not fit the model,
        InputError if it was saved within an epoch by another number of ranks."""
        self.model.load_state_dict(state["state_dict"])
        load_moments(self.optimizer, state["optimizer"])
        self.epoch, self.part = state["epoch"], state.get("part")
        if self.part and len(self.part["processes"]) != world_size():
            raise InputError(
                f"{self.run.source} was saved within an epoch by "
                f"{_processes(len(self.part['processes']))}, not {world_size()}; resume with as "
                "many"
            )
        self.step = self.part["steps"] if self.part else 0

    def rank_state(self) -> dict[str, Any]:
        """Return this rank's own state within an epoch."""
        state = {
            "random": torch.get_rng_state(),
            "running": {name: b.cpu() for name, b in running_statistics(self.model).items()},
            "totals": {name: total.cpu() for name, total in self.totals.items()},
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore `rank_state`."""
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        for name, buffer in running_statistics(self.model).items():
            buffer.copy_(state["running"][name])
        self.totals = {name: total.to(self.device) for name, total in state["totals"].items()}

    def fit(
        self,
        after_epoch: Callable[[int], Values] = nothing,
        score: Callable[[int], Values] = nothing,
    ) -> None:
        """Train from the current state until `config.epochs` are done.

        Saves before the first epoch, after one if it is cheap (`saving_is_cheap`) and after the
        last, every `config.save_minutes` (0: never), and on a signal. `after_epoch(epoch)`, on all
        ranks, and `score(epoch)`, on rank 0 and before the first epoch too, return values for the
        log. Raises InputError if losses or weights become non-finite, before they are saved, or if
        another process is training in the folder, and Stopped after a signal.
        """
        if self.run.resuming and self.epoch >= self.config.epochs:
            if is_main():
                print(f"{self.epoch} epochs already done: {self.run.folder / CHECKPOINT}")
            return
        with training_in(self.run.folder):
            if all_max(is_main() and stamp(self.run.folder) != self.run.found):
                raise InputError(
                    f"another process has just trained in {self.run.folder}; rerun the command"
                )
            self.begin(score)
            self.train_epochs(after_epoch, score)

    def begin(self, score: Callable[[int], Values]) -> None:
        """Open the log; save and log a new run before its first epoch."""
        run = self.run
        self.announce()
        self.log = RunLog(
            run.folder, {"start_epoch": self.epoch, **run.about},
            run.overwrite and not run.resuming, self.epoch,
        )  # fmt: skip
        if not run.resuming:
            self.log_epoch({}, score)
            self.save()
            if is_main():
                (run.folder / PREVIOUS).unlink(missing_ok=True)  # of another run

    def train_epochs(
        self, after_epoch: Callable[[int], Values], score: Callable[[int], Values]
    ) -> None:
        """Train, log and save the epochs that are left."""
        config = self.config
        self.parallel = in_parallel(self.model, self.device)
        self.bar = self.progress_bar()
        watch = Watch(config.save_minutes, all_max)
        with self.bar, closing_workers(self.loader), handling(watch.note):
            for epoch in range(self.epoch, config.epochs):
                self.start_epoch(epoch)
                with self.guard.detecting_anomalies(config.detect_anomaly, epoch):
                    for views, rows in self.loader:
                        self.train_step(views, rows)
                        if self.step < len(self.batches):
                            self.handle(watch.action())
                values = self.finish_epoch()
                values |= after_epoch(self.epoch)
                self.log_epoch(values, score)
                action = watch.action() if self.epoch < config.epochs else SAVE
                if action != CONTINUE or self.saving_is_cheap():
                    self.save()
                if action > SAVE:
                    self.stop(action)
        barrier()  # until the last checkpoint is written
        if is_main():
            print(f"{max(self.epoch, config.epochs)} epochs done: {self.run.folder / CHECKPOINT}")

    def start_epoch(self, epoch: int) -> None:
        """Set batches, learning rate and random state, which depend on the epoch only, not on where
        the run was started or resumed."""
        config = self.config
        self.bar.set_description(f"epoch {epoch + 1}/{config.epochs}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                config.lr, epoch, config.epochs, config.schedule, config.cos
            )
        self.batches.epoch, self.batches.first = epoch, self.step
        torch.manual_seed(stream_seed("steps", config.seed, epoch, rank()))
        if self.part:
            with refusing(f"{self.run.source} does not fit this run"):
                self.load_rank_state(self.part["processes"][rank()])
            self.part = None
        self.parallel.train()
        self.start_time, self.start_step = time.perf_counter(), self.step

    def train_step(self, views: list[Tensor], rows: Tensor) -> None:
        """Take one optimizer step on a batch."""
        self.guard.begin(self.step, rows)
        statistics = take_step(
            self.parallel, self.step_fn, self.optimizer, views, rows, self.epoch, self.device,
            self.guard.note, self.clip,
        )  # fmt: skip
        for name, value in statistics.items():
            self.totals[name] = self.totals.get(name, 0) + value.detach()
        if self.step % self.config.print_freq == 0:  # reading a value waits for the device
            self.bar.set_postfix(loss=f"{statistics['loss'].item():.4f}", refresh=False)
        self.step += 1
        self.bar.update(self.batches.batch_size)

    def handle(self, action: int) -> None:
        """Check for NaN or Inf if due, and save or stop as `action` says; between two steps."""
        if action != CONTINUE or self.guard.due:
            self.guard.check(self.epoch, self.model.state_dict() if action != CONTINUE else {})
        if action != CONTINUE:
            self.save()
            if is_main():
                print(f"saved in epoch {self.epoch + 1}, after step {self.step}", flush=True)
        if action > SAVE:
            self.stop(action)

    def finish_epoch(self) -> Values:
        """Return the statistics' means over the epoch and all ranks, learning rate and speed."""
        steps = len(self.batches)
        values = {name: all_mean(total / steps).item() for name, total in self.totals.items()}
        self.guard.check(self.epoch, self.model.state_dict())
        seconds = (time.perf_counter() - self.start_time) * steps / (steps - self.start_step)
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        values["seconds"] = seconds
        values["images_per_second"] = steps * self.batches.batch_size / seconds
        average_running_statistics(self.model)
        self.epoch, self.step, self.totals = self.epoch + 1, 0, {}
        return values

    def log_epoch(self, values: Values, score: Callable[[int], Values]) -> None:
        """Log an epoch's values and its score, on rank 0."""
        if is_main() and (values := values | score(self.epoch)):
            self.log.epoch(self.epoch, values)

    def save(self) -> None:
        """Write a checkpoint, on rank 0."""
        self.save_time = time.perf_counter()
        state = self.state_dict()
        if is_main():
            self.run.save(self.run.folder, {**self.run.about, **state})
        self.save_seconds = time.perf_counter() - self.save_time

    def saving_is_cheap(self) -> bool:
        """Return whether the last checkpoint took at most `config.save_share` of the time since its
        start."""
        since = time.perf_counter() - self.save_time
        return self.save_seconds <= self.config.save_share * since

    def stop(self, action: int) -> None:
        """Raise Stopped with signal number `action`, once all ranks are here."""
        barrier()
        raise Stopped(action)

    def announce(self) -> None:
        """Print the device, number of processes and images, and the starting point."""
        if not is_main():
            return
        gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if gpu else "CPU"
        after = f", after step {self.step}" if self.step else ""
        print(
            f"training on {name}, {_processes(world_size())}, {len(self.images)} images: from "
            f"epoch {self.epoch + 1} of {self.config.epochs}{after}", flush=True,
        )  # fmt: skip

    def progress_bar(self) -> tqdm:
        """Return a progress bar over the images of all epochs, hidden if not on a terminal."""
        size = len(self.batches) * self.batches.batch_size
        return tqdm(
            initial=self.epoch * size + self.step * self.batches.batch_size,
            total=max(self.epoch, self.config.epochs) * size,
            unit="img",
            disable=None if is_main() else True,
        )


@contextlib.contextmanager
def closing_workers(loader: Loader) -> Iterator[None]:
    """Shut down a loader's processes on leaving the block.

    They ignore signals, so an error would otherwise wait for them forever.
    """
    try:
        yield
    finally:
        if iterator := getattr(loader, "_iterator", None):
            iterator._shutdown_workers()


def take_step(
    model: nn.Module,
    step_fn: StepFn,
    optimizer: torch.optim.Optimizer,
    views: list[Tensor],
    rows: Tensor,
    epoch: int,
    device: torch.device,
    note: Callable[[Tensor], None] = lambda loss: None,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """Take one optimizer step on a batch and return its statistics; `note(loss)` is called before
    the backward pass, unless `step_fn` did it. See `Trainer` for `clip`."""
    views = [view.to(device, non_blocking=True) for view in views]
    optimizer.zero_grad(set_to_none=True)
    statistics = step_fn(model, views, rows.to(device, non_blocking=True), epoch)
    note(statistics["loss"])
    if statistics["loss"].requires_grad:
        statistics["loss"].backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return statistics


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
