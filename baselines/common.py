"""Code shared by the baselines: settings, a supervised model and the training run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.names import quoted
from common.seeding import stream_seed
from datasets import Collection
from datasets.episode import Task
from datasets.images import ImageSet
from moco import resume
from moco.config import STAGES, ImageTraining, data_folder
from moco.train import train
from moco.weights import weights_record
from models import LinearClassifier, build_encoder
from trainer.distributed import pick_device
from trainer.flags import parse
from trainer.trainer import Run, StepFn

from . import register_all


@dataclass(frozen=True, kw_only=True)
class Baseline(ImageTraining):
    """Settings of all baselines."""

    data: Path = data_folder()


@dataclass(frozen=True)
class Start:
    """What the training of `stage` starts from: settings, data, and the checkpoint to continue."""

    stage: str
    settings: Any  # those of the stage
    source: resume.Source | None
    data: Collection

    def replaced(self, **changes: Any) -> "Start":
        """Return the same with other settings."""
        return replace(self, settings=replace(self.settings, **changes))

    @property
    def device(self) -> torch.device:
        return pick_device(self.settings.device, self.settings.gpu)

    def seed_weights(self) -> None:
        """Seed the random weights of a new model."""
        torch.manual_seed(stream_seed(f"{self.stage} weights", self.settings.seed))

    def model(self) -> nn.Module:
        """Build the model of a meta-learning stage."""
        self.seed_weights()
        return STAGES[self.stage].model(self.settings.record())


def start(stage: str, argv: list[str] | None, part: str = "base") -> Start:
    """Return what a command starts from; it uses a part of its data."""
    register_all()  # --weights and --encoder may be runs of other baselines
    cls = STAGES[stage].settings
    settings, source = resume.resolve_training(cls, parse(cls, argv))
    return Start(stage, settings, source, settings.open_data(use=[part]))


def require_classes(images: ImageSet) -> None:
    """Raise InputError if the base images are of a single class: their labels teach nothing."""
    if len(images.classes) < 2:
        raise InputError(
            "this method learns from the labels of at least two base classes, and there is one: "
            f"{quoted(images.classes[0])}; main_moco, SimCLR, UMTRA and CACTUs need no labels"
        )


class Supervised(nn.Module):
    """A backbone and a linear classifier on its features, without an embedding head."""

    def __init__(self, arch: str, num_classes: int, image_size: int):
        super().__init__()
        self.query_encoder = build_encoder(
            arch, None, image_size=image_size
        )  # test.py expects this name
        self.classifier = LinearClassifier(self.query_encoder.out_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, B×3×S×S, to logits, B×num_classes."""
        return self.classifier(self.query_encoder(images))


def start_run(
    start: Start, images: ImageSet, task: Task | None = None, **more: object
) -> tuple[Run, ImageSet]:
    """Return the run and the decoded `images`, a part of the data.

    The checkpoint records `task`, if the images are its support set, and `more`. Raises InputError
    like `resume.check_run`.
    """
    settings, source = start.settings, start.source
    run, images = resume.prepare_run(
        start.stage, settings, source, start.data, images,
        task=task and task.to_dict(), weights=weights_record(settings, source), **more,
    )  # fmt: skip
    run.about["args"] |= {"moco_dim": None, "mlp": False}
    return run, images


def train_baseline(
    start: Start, images: ImageSet, model: nn.Module, step: StepFn, views: int,
    task: Task | None = None, **more: object,
) -> None:  # fmt: skip
    """Train `model` on `views` random views of each of `images`, a part of the data, with `step`,
    in a single process.

    See `start_run` for `task` and `more`. Raises InputError if there are fewer images than a batch
    or a batch has a single one, too.
    """
    settings = start.settings
    if settings.batch_size < 2:
        raise InputError(
            f"--batch-size {settings.batch_size}: at least 2 images are needed, for the statistics "
            "of BatchNorm or as negatives"
        )
    if len(images) < settings.batch_size:
        raise InputError(
            f"--batch-size {settings.batch_size} is more than the {len(images)} images"
        )
    run, images = start_run(start, images, task, **more)
    train(model, step, images, settings, run, start.device, views)
