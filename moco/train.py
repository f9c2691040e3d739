"""A training of this method: the trainer's loop, on random views, with a k-NN score in the log."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from datasets.images import ImageSet
from trainer.config import readers_of
from trainer.trainer import Run, StepFn, Trainer, Values, nothing

from .config import ImageTraining
from .evaluate import encode, knn_score
from .loader import EpochBatches, ending, training_loader


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
    """Train a model on `views` random views of `images`; `step_fn` and `after_epoch` as `Trainer`
    has them. Every --knn-every epochs the log gets a k-NN score of `model.query_encoder` on the
    classes of `images`. Raises InputError and Stopped as `Trainer.fit` does."""
    batches = EpochBatches(len(images), settings.batch_size, settings.seed)
    workers, every = readers_of(settings), settings.knn_every
    loader = functools.partial(
        training_loader, images, batches, views, settings.seed, settings.image_size,
        settings.aug_plus, settings.views_by, workers, device,
    )  # fmt: skip

    def score(epoch: int) -> Values:
        if not every or (epoch % every and epoch != settings.epochs):
            return {}
        encoder = model.get_submodule("query_encoder")
        embeddings = encode(encoder, images, settings.image_size, workers=workers, device=device)
        return knn_score(embeddings, images.labels)

    trainer = Trainer(model, step_fn, images, batches, ending(loader), settings, run, device)
    trainer.fit(after_epoch, score)
