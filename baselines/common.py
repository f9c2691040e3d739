"""Code shared by the baselines: settings, a supervised model and the training run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from datasets import Collection
from datasets.episode import Task
from datasets.images import ImageSet
from datasets.open import decoded
from moco import resume
from moco.config import ImageTraining, data_folder
from moco.train import train
from moco.weights import weights_record
from models import LinearClassifier, build_encoder
from trainer.trainer import Run, StepFn


@dataclass(frozen=True, kw_only=True)
class Baseline(ImageTraining):
    """Settings of all baselines."""

    data: Path = data_folder()


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
    stage: str,
    settings: Baseline,
    source: resume.Source | None,
    data: Collection,
    images: ImageSet,
    task: Task | None = None,
    **more: object,
) -> tuple[Run, ImageSet]:
    """Return the run and the decoded `images`, a part of `data`.

    The checkpoint records `stage`, `task`, if the images are its support set, and `more`. Raises
    InputError like `resume.check_run`.
    """
    about = resume.about_run(
        stage, settings, data, images,
        task=task and task.to_dict(), weights=weights_record(settings, source), **more,
    )  # fmt: skip
    about["args"] |= {"moco_dim": None, "mlp": False}
    resume.check_run(settings, about, images, source)
    images = decoded(
        images, settings.image_size, settings.cache_folder, settings.views_by == "batch"
    )
    return resume.run_of(settings, about, source), images


def train_baseline(
    stage: str,
    settings: Baseline,
    source: resume.Source | None,
    data: Collection,
    images: ImageSet,
    model: nn.Module,
    step: StepFn,
    device: torch.device,
    views: int,
    task: Task | None = None,
) -> None:
    """Train `model` on `views` random views of each of `images`, a part of `data`, with `step`, in
    a single process.

    See `start_run` for the rest. Raises InputError if there are fewer images than a batch, too.
    """
    if len(images) < settings.batch_size:
        raise InputError(
            f"--batch-size {settings.batch_size} is more than the {len(images)} images"
        )
    run, images = start_run(stage, settings, source, data, images, task)
    train(model, step, images, settings, run, device, views)
