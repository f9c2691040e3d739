"""The training loop: models differ in what a step computes, not in this."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from tqdm import tqdm

from common.errors import InputError, refusing
from common.seeding import stream_seed
from datasets.images import ImageSet

from .checkpoint import CHECKPOINT, PREVIOUS
from .distributed import (
    agreed,
    all_mean,
    average_running_statistics,
    barrier,
    gather_objects,
    is_main,
    rank,
    running_statistics,
    world_size,
)
from .log import RunLog
from .nan_guard import anomalies_told, require_finite
from .performance import prepare, sgd
from .signals import GO_ON, SAVE, Stopped, watching

Load = Callable[[Path, tuple[str, ...]], dict]  # of a checkpoint of one of these stages
Save = Callable[[Path, dict], None]  # to a folder
Loader = Iterable  # of (views, rows), with the sampler of the batches as its `batch_sampler`
Step = Callable[[nn.Module, list[Tensor], Tensor, int], dict[str, Tensor]]


def learning_rate(lr: float, epoch: int, epochs: int, schedule: Sequence[int], cos: bool) -> float:
    """`lr` divided by 10 at each epoch in `schedule`, or on half a cosine to 0 (MoCo v2)."""
    if cos:
        return lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return lr * 0.1 ** sum(epoch >= milestone for milestone in schedule)


def fit(
    model: nn.Module,
    step: Step,
    images: ImageSet,
    about: dict,
    *,
    batches: Sampler,
    loader: AbstractContextManager[Loader],
    score: Callable[[nn.Module], dict[str, float]],
    load: Load,
    save: Save,
    device: torch.device,
    model_path: Path,
    resume: Path | None,
    goes_on: bool,
    overwrite: bool,
    epochs: int,
    start_epoch: int | None,
    lr: float,
    schedule: Sequence[int],
    cos: bool,
    momentum: float,
    wd: float,
    amp: bool,
    compile: bool,
    seed: int,
    print_freq: int,
    knn_every: int,
    save_minutes: float,
    detect_anomaly: bool,
    before_epoch: Callable[[int, bool], dict[str, float]] = lambda epoch, begun: {},
) -> None:
    """Train `model` on random views of `images` by SGD, and leave checkpoints and a log.

    `step(model, views, rows, epoch)` computes the statistics of a batch, of which "loss" is
    minimised; its epochs count from 0. `loader` is entered once, for the views of `batches`, the
    sampler that it reads; `load` and `save` read, check and write checkpoints. `about` goes into
    every checkpoint. The model is first saved untrained, or taken from the checkpoint `resume`
    (`goes_on`: which is the one in `model_path`); then saved after each epoch, every `save_minutes`
    (0: never), and on a signal. Every `knn_every` epochs (0: never) the log gets `score(model)`, on
    rank 0; what `before_epoch(epoch, begun)` returns goes there, too (`begun`: part of this epoch's
    steps were taken before). `amp` and `compile` as `prepare` has them. `detect_anomaly` looks at
    every step, and has torch say which operation made what is no number. Raises InputError when
    losses or weights are no longer finite numbers, before they are saved; and Stopped after a
    signal.
    """
    prepare(model, device, amp, compile)
    optimizer = sgd(model, lr, momentum, wd)
    done, begun = 0, None
    if resume:
        done, begun = load_training_state(load, resume, about["stage"], model, optimizer, device)
    if start_epoch is not None and not goes_on:
        done, begun = start_epoch, None
    place = begun and begun["steps"]
    require_alike((done, place, epochs, lr, seed, about["base"], about["task"]), model_path)
    if goes_on and done >= epochs:
        if is_main():
            print(f"{done} epochs were done before: {model_path / CHECKPOINT}")
        return
    if is_main():
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "processors"
        after = f", after step {place}" if begun else ""
        print(
            f"training on {where}, {world_size()} process(es), {len(images)} images: from epoch "
            f"{done + 1} of {epochs}{after}", flush=True,
        )  # fmt: skip
    log = RunLog(model_path, {"start_epoch": done, **about}, overwrite and not goes_on, done)

    def write(done: int, part: dict | None = None) -> None:
        state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
        save(model_path, {**about, "epoch": done, "part": part, **state})

    def keep(done: int, values: dict[str, float]) -> None:
        """Log and save what `done` epochs have come to."""
        average_running_statistics(model)
        if is_main():
            if knn_every and (done % knn_every == 0 or done == epochs):
                values = values | score(model)
            if values:
                log.epoch(done, values)
            write(done)

    recent: list[tuple[int, Tensor, Tensor]] = []  # steps whose loss nobody has looked at

    def pause(epoch: int, steps: int, totals: dict[str, Tensor]) -> None:
        """Between two steps, the last one excepted: save, and stop, if that is wanted."""
        word = watch.wanted()
        if word != GO_ON or len(recent) >= (1 if detect_anomaly else print_freq):
            weights = model.state_dict() if word != GO_ON else {}
            require_finite(recent, weights, images, epoch, model_path / CHECKPOINT)
        if word != GO_ON:
            own = own_state(model, totals, device)
            part = {"steps": steps, "processes": gather_objects(own)}
            if is_main():
                write(epoch, part)
                print(f"saved in epoch {epoch + 1}, after step {steps}", flush=True)
            if word != SAVE:
                barrier()
                raise Stopped(word)

    if not goes_on:
        keep(done, {})
        if is_main():
            (model_path / PREVIOUS).unlink(missing_ok=True)  # another run's
    wrapped = in_parallel(model, device)
    batches.first = begun["steps"] if begun else 0
    size = len(batches) * batches.batch_size  # of an epoch, in images
    bar = tqdm(
        initial=done * size + batches.first * batches.batch_size,
        total=max(done, epochs) * size,
        unit="img",
        disable=None if is_main() else True,  # None: where it would go to a file
    )
    with bar, loader as served, watching(save_minutes, agreed) as watch:
        for epoch in range(done, epochs):
            bar.set_description(f"epoch {epoch + 1}/{epochs}")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(lr, epoch, epochs, schedule, cos)
            batches.epoch = epoch
            in_force = before_epoch(epoch, begun is not None)
            # What is random in a step then depends on the epoch it is in, not on where the run
            # was started or resumed.
            torch.manual_seed(stream_seed("steps", seed, epoch, rank()))
            totals = {}
            if begun:
                with refusing(f"{resume} does not fit the run that is to go on"):
                    totals = restore_own_state(model, begun, device)
            started, taken = time.perf_counter(), len(batches) - batches.first
            last = model_path / CHECKPOINT
            with anomalies_told(detect_anomaly, recent, images, epoch, last):
                values = train_one_epoch(
                    wrapped, step, served, optimizer, device, epoch, bar, print_freq, totals, pause,
                    recent,
                )  # fmt: skip
            require_finite(recent, model.state_dict(), images, epoch, last)
            seconds = (time.perf_counter() - started) * len(batches) / taken
            begun, batches.first = None, 0
            in_force["lr"] = optimizer.param_groups[0]["lr"]
            speed = {"seconds": seconds, "images_per_second": size / seconds}
            keep(epoch + 1, values | in_force | speed)
            if epoch + 1 < epochs and (word := watch.wanted()) > SAVE:
                barrier()
                raise Stopped(word)
    barrier()  # nobody leaves before the last checkpoint is written
    if is_main():
        print(f"{max(done, epochs)} epochs done: {model_path / CHECKPOINT}")


def require_alike(state: tuple, model_path: Path) -> None:
    """Raise InputError, in all processes, if they are not about to begin with the same `state`."""
    if len(set(map(repr, gather_objects(state)))) > 1:
        raise InputError(
            "the processes were given different arguments or data, or see different files in "
            f"{model_path}; all must be and see the same"
        )


def in_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, whose gradients become the mean over all processes while they are computed."""
    if world_size() == 1:
        return model
    device_ids = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # each process has its own BatchNorm statistics
    return wrapped


def load_training_state(
    load: Load,
    path: Path,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> tuple[int, dict | None]:
    """Put `model` and `optimizer` where the checkpoint at `path` left them. Returns the number of
    epochs done, and where in the next one it was, if it was. Raises InputError as `load` does,
    or if other processes than these were in the middle of an epoch."""
    checkpoint = load(path, (stage,))
    with refusing(f"{path} does not fit the run that is to go on"):
        model.load_state_dict(checkpoint["state_dict"])
        load_momentum(optimizer, checkpoint["optimizer"])
    begun = checkpoint.get("part")
    if begun and len(begun["processes"]) != world_size():
        raise InputError(
            f"{path} was saved in the middle of an epoch by {len(begun['processes'])} process(es), "
            f"not {world_size()}; go on with as many"
        )
    return checkpoint["epoch"], begun


def load_momentum(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Give SGD the momentum that was saved; its settings are the run's. Raises ValueError if that
    does not fit the weights, or is no finite numbers."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["state"]})
    for theta, state in optimizer.state.items():
        momentum = state["momentum_buffer"]
        if momentum.shape != theta.shape or not momentum.isfinite().all():
            raise ValueError("the momentum of its weights is not of their shape, or not finite")


def own_state(model: nn.Module, totals: dict[str, Tensor], device: torch.device) -> dict:
    """What of a run's state in the middle of an epoch is each process's own: the random numbers to
    come, running statistics, and the statistics so far."""
    state = {
        "random": torch.get_rng_state(),
        "running": {name: b.cpu() for name, b in running_statistics(model).items()},
        "totals": {name: total.cpu() for name, total in totals.items()},
    }
    if device.type == "cuda":
        state["random_cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_own_state(model: nn.Module, begun: dict, device: torch.device) -> dict[str, Tensor]:
    """The reverse of `own_state`, for this process. Returns the statistics so far."""
    state = begun["processes"][rank()]
    torch.set_rng_state(state["random"])
    if device.type == "cuda" and "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], device)
    for name, buffer in running_statistics(model).items():
        buffer.copy_(state["running"][name])
    return {name: total.to(device) for name, total in state["totals"].items()}


def train_one_epoch(
    model: nn.Module,
    step: Step,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    epoch: int,
    bar: tqdm,
    print_freq: int,
    totals: dict[str, Tensor] | None = None,
    pause: Callable[[int, int, dict[str, Tensor]], None] = lambda epoch, steps, totals: None,
    recent: list[tuple[int, Tensor, Tensor]] | None = None,
) -> dict[str, float]:
    """One pass over `loader`, or what is left of it after steps that add up to `totals`.

    Returns the epoch's mean of each statistic, over all processes. `pause(epoch, steps, totals)` is
    called after each of its steps but the last. The steps' numbers, rows and losses go to `recent`.
    """
    model.train()
    totals = totals or {}
    recent = [] if recent is None else recent
    for number, (views, rows) in enumerate(loader, loader.batch_sampler.first):
        views = [view.to(device, non_blocking=True) for view in views]
        optimizer.zero_grad(set_to_none=True)
        statistics = step(model, views, rows.to(device, non_blocking=True), epoch)
        recent.append((number, rows, statistics["loss"].detach()))
        statistics["loss"].backward()
        optimizer.step()
        for name, value in statistics.items():
            totals[name] = totals.get(name, 0) + value.detach()
        if number % print_freq == 0:  # reading a value waits for the device
            bar.set_postfix(loss=f"{statistics['loss'].item():.4f}", refresh=False)
        bar.update(loader.batch_sampler.batch_size)
        if number + 1 < len(loader):
            pause(epoch, number + 1, totals)
    return {name: all_mean(total / len(loader)).item() for name, total in totals.items()}
