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
from moco.config import ImageTraining
from moco.train import train
from moco.weights import weights_record
from models import LinearClassifier, build_encoder
from trainer.settings import setting
from trainer.trainer import StepFn


@dataclass(frozen=True, kw_only=True)
class Baseline(ImageTraining):
    """Settings of all baselines."""

    data: Path = setting(help="data folder", positional=True, metavar="DATA")


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

    The checkpoint records `stage` and, if `images` are the support set of a task, `task`. Raises
    InputError if there are fewer images than a batch, or like `resume.check_run`.
    """
    if len(images) < settings.batch_size:
        raise InputError(
            f"--batch-size {settings.batch_size} is more than the {len(images)} images"
        )
    about = resume.about_run(
        stage, settings, data, images,
        task=task and task.to_dict(), weights=weights_record(settings, source),
    )  # fmt: skip
    about["args"] |= {"moco_dim": None, "mlp": False}
    resume.check_run(settings, about, images, source)
    cache = settings.cache_folder
    images = decoded(images, settings.image_size, cache, settings.views_by == "batch")
    train(model, step, images, settings, resume.run_of(settings, about, source), device, views)
