"""Training on random views of images, with k-NN scores in the log."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from common.failures import tracebacks_to
from datasets.images import ImageSet
from trainer.distributed import is_main
from trainer.launch_plan import readers_of
from trainer.optimizer import learning_rate
from trainer.performance import compiling_pays
from trainer.trainer import Run, StepFn, Trainer, Values, nothing

from .config import ContrastiveTraining, ImageTraining
from .evaluate import can_score_knn, encode, knn_score
from .loader import EpochBatches, training_loader
from .weights import initial_weights, load_initial


def train(
    model: nn.Module,
    step_fn: StepFn,
    images: ImageSet,
    settings: ImageTraining,
    run: Run,
    device: torch.device,
    views: int = 2,
    after_epoch: Callable[[int], Values] = nothing,
) -> None:
    """Train a model on `views` random views of `images`, a new run from --weights.

    `step_fn`, `after_epoch`: see `Trainer`. Every --knn-every epochs, logs a k-NN score of
    `model.query_encoder` on the classes of `images`. Raises InputError and Stopped as `Trainer.fit`
    does.
    """
    begin(model, settings, run)
    batches = EpochBatches(len(images), settings.batch_size, settings.seed)
    if settings.compile is None:
        compile = compiling_pays(device, settings.epochs * len(batches))
        settings = dataclasses.replace(settings, compile=compile)
    loader = training_loader(
        images, batches, views, settings.seed, settings.image_size, settings.aug_plus,
        settings.views_by, readers_of(settings), device,
        bool(settings.compile) and device.type == "cuda",
    )  # fmt: skip
    trainer = Trainer(model, step_fn, images, batches, loader, settings, run, device)
    score = knn_scorer(model, images, settings, device)

    def note_and_score(epoch: int) -> Values:  # on rank 0
        if note := note_on_drop(settings, epoch):
            print(note, flush=True)
        return score(epoch)

    trainer.fit(after_epoch, note_and_score)


def note_on_drop(settings: ImageTraining, epoch: int) -> str:
    """Return why the contrastive loss may rise after `epoch`, if the learning rate drops there."""
    drops = isinstance(settings, ContrastiveTraining) and not settings.cos
    if not drops or epoch not in settings.schedule or epoch >= settings.epochs:
        return ""
    rate = learning_rate(settings.lr, epoch, settings.epochs, settings.schedule, settings.cos)
    return (
        f"note: learning rate {rate:.2g} after epoch {epoch}: the contrastive loss may rise now, "
        "as keys in the queue age less and are harder to tell from new ones (docs/training.md)"
    )


def begin(model: nn.Module, settings: ImageTraining, run: Run) -> None:
    """Load --weights into the model of a new run; have tracebacks written to the run's folder."""
    tracebacks_to(run.folder)
    if run.load is None and (initial := initial_weights(settings.weights, settings.arch)):
        load_initial(model, initial)


def knn_scorer(
    model: nn.Module, images: ImageSet, settings: ImageTraining, device: torch.device
) -> Callable[[int], Values]:
    """Return a function that, every --knn-every epochs, returns a k-NN score of
    `model.query_encoder` on the classes of `images`, else nothing."""
    workers, interval = readers_of(settings), settings.knn_every
    if interval and not can_score_knn(images.labels):
        if is_main():
            print("note: no k-NN scores, which need two classes of two images")
        return nothing

    def score(epoch: int) -> Values:
        if not interval or (epoch % interval and epoch != settings.epochs):
            return {}
        encoder = model.get_submodule("query_encoder")
        embeddings = encode(encoder, images, settings.image_size, workers=workers, device=device)
        return knn_score(embeddings, images.labels)

    return score
