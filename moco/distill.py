"""Stage (d): the student's training step, and the correction of class imbalance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError, listed
from datasets.images import ImageSet
from trainer.distributed import broadcast, is_main
from trainer.launch_plan import readers_of
from trainer.trainer import StepFn, Values, nothing

from . import losses
from .builder import Student, contrast_accuracy
from .config import Distillation
from .evaluate import encode


def require_read(settings: Distillation, given: Mapping[str, Any]) -> None:
    """Raise InputError if flags, `given` other values than their defaults, have no effect with the
    others."""
    fields, correction = type(settings).fields(), settings.correction
    unread = {
        "--p-label": () if settings.p_label else ("losses",),
        "--correction dic": ("dic_interval", "dic_dispersion") if correction != "dic" else (),
        "--correction dic or ddl": ("dic_gamma", "dic_scale") if correction == "none" else (),
        "an adaptive --pseudo-label": () if "adaptive" in settings.pseudo_label else ("alpha",),
        "a classification loss": () if settings.p_label and "cls" in settings.losses
        else ("correction", "pseudo_label", "alpha", "cls_loss", "pseudo_balance"),
    }  # fmt: skip
    for needed, names in unread.items():
        if wrong := [n for n in names if n in given and given[n] != fields[n].default]:
            flags = listed(fields[name].flag for name in wrong)
            raise InputError(f"{flags}: no effect without {needed}")


def align(p: Tensor) -> Tensor:
    """Distribution alignment of pseudo labels to a uniform prior, 1/N: ReMixMatch (Berthelot et al.
    2020, arXiv 1911.09785, section 3.1), with the mean over all base images.

    p̃ = Normalize(p / p̄), p: M×N probabilities of the teacher, p̄: their mean over the M images.
    Returns M×N probabilities. A class that no image has any probability of keeps 0.
    """
    ratios = p / p.mean(dim=0).clamp(min=torch.finfo(p.dtype).tiny)
    return ratios / ratios.sum(dim=1, keepdim=True)


def distillation_step(
    settings: Distillation, student: Student, y: Tensor, teacher_embeddings: np.ndarray
) -> StepFn:
    """Return the training step of the `student`, which computes eq. (2).

    y: M×N pseudo labels, on the training device; `teacher_embeddings`: M×D. Regression needs
    embeddings of the same dimension D; raises InputError if it is asked for with another.
    """
    targets = torch.from_numpy(teacher_embeddings).to(y.device)
    comparable = targets.shape[1] == student.queue.shape[1]
    if settings.losses == "con+reg" and not comparable:
        raise InputError(
            f"--losses con+reg: the student's embeddings have {student.queue.shape[1]} dimensions, "
            f"the teacher's {targets.shape[1]}; choose --moco-dim accordingly"
        )
    corrected = settings.correction != "none"

    def step(model: nn.Module, views: list[Tensor], rows: Tensor, epoch: int) -> dict[str, Tensor]:
        contrastive_logits, embeddings, class_logits = model(*views)
        parts = {
            "con": losses.contrastive_loss(contrastive_logits),
            "cls": losses.classification_loss(
                y[rows], class_logits, student.class_temperatures if corrected else None, epoch,
                settings.epochs, settings.alpha, settings.pseudo_label, settings.cls_loss,
            ),
        }  # fmt: skip
        if comparable:
            parts["reg"] = losses.regression(targets[rows], embeddings)
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
    """Return what the trainer calls after each epoch to correct class imbalance.

    Sets the class temperatures τ_n, eqs. (6)–(9): DIC every `dic_interval` epochs, from the
    dispersions v_n, eq. (8), of the student's embeddings of the base images; DDL here, once, from
    the counts of the hard pseudo labels. hard_labels: M class indices, in the order of `base`.
    """

    def set_temperatures(v: Tensor) -> None:
        tau = losses.class_temperatures(v, settings.dic_gamma, settings.dic_scale)
        student.class_temperatures.copy_(tau)

    def after_epoch(epochs_done: int) -> Values:
        """Measure if due; return the temperatures used in the epoch, for the log."""
        values = student.class_temperatures.tolist()
        if settings.correction == "dic" and epochs_done % settings.dic_interval == 0:
            if is_main():
                embeddings = encode(
                    student.query_encoder, base, settings.image_size,
                    workers=readers_of(settings), device=device,
                )  # fmt: skip
                kind, z = settings.dic_dispersion, torch.from_numpy(embeddings)
                set_temperatures(losses.dispersions(z, hard_labels, len(classes), kind))
            broadcast(student.class_temperatures)
        return {f"temperature_{name}": value for name, value in zip(classes, values)}

    if settings.correction == "none":
        return nothing
    if settings.correction == "ddl":
        set_temperatures(hard_labels.bincount(minlength=len(classes)).float())
    return after_epoch
