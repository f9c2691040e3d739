"""Stage (d): the student's training step, and the correction of class imbalance."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from datasets.images import ImageSet
from trainer.config import readers_of
from trainer.distributed import broadcast, is_main
from trainer.trainer import StepFn, Values, nothing

from . import losses
from .builder import Student, contrast_accuracy
from .config import Distillation
from .evaluate import encode


def distillation_step(
    settings: Distillation, student: Student, y: Tensor, teacher_embeddings: np.ndarray
) -> StepFn:
    """Return the training step of the `student`, which computes eq. (2).

    y: M×N pseudo labels, on the training device; `teacher_embeddings`: M×D.
    """
    targets = torch.from_numpy(teacher_embeddings).to(y.device)

    def step(model: nn.Module, views: list[Tensor], rows: Tensor, epoch: int) -> dict[str, Tensor]:
        contrastive_logits, embeddings, class_logits = model(*views)
        loss_cls = losses.classification_loss(
            y[rows], class_logits, student.class_temperatures, epoch, settings.epochs,
            settings.alpha, settings.pseudo_label, settings.cls_loss,
            settings.correction != "none",
        )  # fmt: skip
        parts = {
            "con": losses.contrastive_loss(contrastive_logits),
            "cls": loss_cls,
            "reg": losses.regression(targets[rows], embeddings),
        }
        agreement = class_logits.argmax(dim=1) == y[rows].argmax(dim=1)
        return {
            "loss": losses.distillation_loss(parts, settings.losses if settings.p_label else "con"),
            **{f"loss_{name}": part for name, part in parts.items()},
            "agreement": agreement.float().mean(),
            **contrast_accuracy(contrastive_logits),
        }

    return step


def class_correction(
    settings: Distillation,
    student: Student,
    base: ImageSet,
    hard_labels: Tensor,
    classes: Sequence[str],
    device: torch.device,
) -> Callable[[int], Values]:
    """Return the hook after each epoch that sets the class temperatures τ_n of eqs. (6)–(9).

    DDL sets them once, here, from the counts of the hard pseudo labels; DIC's hook measures the
    student's dispersions. hard_labels: M class indices, in the order of `base`.
    """
    n_way = len(classes)

    def set_temperatures(v: Tensor) -> None:
        tau = losses.class_temperatures(v, settings.dic_gamma, settings.dic_scale)
        student.class_temperatures.copy_(tau)

    def after_epoch(epoch: int) -> Values:
        """Update DIC's temperatures if due; return those used in this epoch, for the log."""
        values = student.class_temperatures.tolist()
        if settings.correction == "dic" and epoch % settings.dic_interval == 0:
            if is_main():
                embeddings = encode(
                    student.query_encoder, base, settings.image_size,
                    workers=readers_of(settings), device=device,
                )  # fmt: skip
                set_temperatures(
                    losses.dispersions(
                        torch.from_numpy(embeddings), hard_labels, n_way, settings.dic_dispersion
                    )
                )
            broadcast(student.class_temperatures)
        return {f"temperature_{name}": value for name, value in zip(classes, values)}

    if settings.correction == "ddl":
        set_temperatures(hard_labels.bincount(minlength=n_way).float())
    return nothing if settings.correction == "none" else after_epoch
