"""What the baselines share: a supervised model, and a run that the other scripts understand."""

import argparse

import torch
from torch import Tensor, nn

from common.errors import InputError
from datasets.episode import Task
from datasets.images import ImageSet
from datasets.open import decoded
from moco import config, resume
from models import LinearClassifier, build_encoder
from trainer.provenance import provenance
from trainer.trainer import Step, fit


class Supervised(nn.Module):
    """A backbone and a linear classifier on its features, without an embedding between."""

    def __init__(self, arch: str, classes: int):
        super().__init__()
        self.query_encoder = build_encoder(arch, None)  # by this name test.py finds it
        self.classifier = LinearClassifier(self.query_encoder.out_features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images B×3×S×S to logits B×`classes`."""
        return self.classifier(self.query_encoder(images))


def train(
    stage: str,
    args: argparse.Namespace,
    images: ImageSet,
    model: nn.Module,
    step: Step,
    device: torch.device,
    views: int,
    task: Task | None = None,
) -> None:
    """Train `model` on `views` random views of `images`, as stage (a) is trained but for the step,
    in one process. The checkpoint is of `stage`, and of `task` if the images are its support set.

    Raises InputError as `check_run` does, or if the images fill no batch.
    """
    if len(images) < args.batch_size:
        raise InputError(f"--batch-size {args.batch_size} is more than the {len(images)} images")
    about = {
        "stage": stage,
        "args": {**config.recorded(args), "moco_dim": None, "mlp": False},
        "base": images.fingerprint(),
        "task": task and task.to_dict(),
        "made_by": provenance(),
    }
    resume.check_run(args, about)
    images = decoded(args, images, args.image_size)
    values = resume.training_values(args, images, device, views)
    fit(model, step, images, about, device=device, **values)
