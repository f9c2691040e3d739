"""What the baselines share: a supervised model, and a run that the other scripts understand."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from datasets.episode import Task
from datasets.images import ImageSet
from datasets.open import decoded
from moco import resume
from moco.config import ImageTraining
from moco.train import train
from models import LinearClassifier, build_encoder
from trainer.provenance import provenance
from trainer.settings import setting
from trainer.trainer import StepFn


@dataclass(frozen=True, kw_only=True)
class Baseline(ImageTraining):
    """Settings that all baselines have; a baseline adds its own."""

    data: Path = setting(help="data folder", positional=True, metavar="DATA")


class Supervised(nn.Module):
    """A backbone and a linear classifier on its features, without an embedding between."""

    def __init__(self, arch: str, classes: int):
        super().__init__()
        self.query_encoder = build_encoder(arch, None)  # by this name test.py finds it
        self.classifier = LinearClassifier(self.query_encoder.out_features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images B×3×S×S to logits B×`classes`."""
        return self.classifier(self.query_encoder(images))


def train_baseline(
    stage: str,
    settings: Baseline,
    source: resume.Source | None,
    images: ImageSet,
    model: nn.Module,
    step: StepFn,
    device: torch.device,
    views: int,
    task: Task | None = None,
) -> None:
    """Train `model` on `views` random views of `images`, as stage (a) is trained but for the step,
    in one process. The checkpoint is of `stage`, and of `task` if the images are its support set.

    Raises InputError as `resume.check_run` does, or if the images fill no batch.
    """
    if len(images) < settings.batch_size:
        raise InputError(
            f"--batch-size {settings.batch_size} is more than the {len(images)} images"
        )
    about = {
        "stage": stage,
        "args": {**settings.record(), "moco_dim": None, "mlp": False},
        "base": images.fingerprint(),
        "task": task and task.to_dict(),
        "made_by": provenance(),
    }
    resume.check_run(settings, about, source)
    cache = settings.cache_folder
    images = decoded(images, settings.image_size, cache, settings.views_by == "batch")
    train(model, step, images, settings, resume.run_of(settings, about, source), device, views)
