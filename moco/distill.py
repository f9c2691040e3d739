"""A student's step, and the class temperatures that DIC measures while it learns: stage (d)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.images import ImageSet
from trainer.distributed import broadcast, is_main
from trainer.trainer import Step

from . import losses
from .builder import Student, contrast_accuracy
from .config import readers_of
from .evaluate import encode


def distillation_step(args, student: Student, y: Tensor, teacher_embeddings: np.ndarray) -> Step:
    """What a batch costs the `student`, eq. (2). y: M×N pseudo labels, on the device of training;
    `teacher_embeddings`: M×D."""
    of_teacher = torch.from_numpy(teacher_embeddings).to(y.device)

    def step(model, views, rows, epoch):
        contrastive_logits, embeddings, class_logits = model(*views)
        loss_cls = losses.classification_loss(
            y[rows], class_logits, student.class_temperatures, epoch, args.epochs, args.alpha,
            args.pseudo_label, args.cls_loss, args.correction != "none",
        )  # fmt: skip
        parts = {
            "con": losses.contrastive_loss(contrastive_logits),
            "cls": loss_cls,
            "reg": losses.regression(of_teacher[rows], embeddings),
        }
        agreed = class_logits.argmax(dim=1) == y[rows].argmax(dim=1)
        return {
            "loss": losses.distillation_loss(parts, args.losses if args.p_label else "con"),
            **{f"loss_{name}": part for name, part in parts.items()},
            "agreement": agreed.float().mean(),
            **contrast_accuracy(contrastive_logits),
        }

    return step


def class_correction(
    args,
    student: Student,
    base: ImageSet,
    hard_labels: Tensor,
    classes: Sequence[str],
    device: torch.device,
) -> Callable[[int, bool], dict[str, float]]:
    """What corrects the classes' imbalance before an epoch: `fit`'s `before_epoch`."""

    def correct(epoch: int, begun: bool) -> dict[str, float]:
        """Before an epoch: DIC's temperatures anew where they are due (and were not measured when
        this epoch began); those in force, to log."""
        if args.correction == "none":
            return {}
        due = epoch and epoch % args.dic_interval == 0 and not begun
        if args.correction == "dic" and due:
            if is_main():
                embeddings = encode(
                    student.query_encoder,
                    base,
                    args.image_size,
                    workers=readers_of(args),
                    device=device,
                )
                v = losses.dispersions(
                    torch.from_numpy(embeddings), hard_labels, len(classes), args.dic_dispersion
                )
                tau = losses.class_temperatures(v, args.dic_gamma, args.dic_scale)
                student.class_temperatures.copy_(tau)
            broadcast(student.class_temperatures)
        values = student.class_temperatures.tolist()
        return {f"temperature_{name}": value for name, value in zip(classes, values)}

    return correct
