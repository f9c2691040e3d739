"""Supervised representation learning (Tian et al. 2020, arXiv 2003.11539): SRL-simple classifies
the base images; SRL-distill is a born-again network that also matches SRL-simple's predictions.

python -m baselines.srl DATA --model-path SIMPLE
python -m baselines.srl DATA --model-path OUT --teacher SIMPLE
python test.py DATA --resume OUT --k-shot 5 --seed 0

Scores use the backbone. Tian et al. normalise its features before the logistic regression; here,
as for all methods, they are not normalised.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from common.errors import InputError
from moco.checkpoint import (
    load_checkpoint,
    note_on_epochs,
    query_encoder,
    require_trained_on,
    student_classifier,
)
from moco.config import Stage, register
from moco.losses import tempered_kl
from trainer import cli
from trainer.performance import prepare
from trainer.settings import setting

from .common import Baseline, Supervised, require_classes, start, train_baseline


@dataclass(frozen=True, kw_only=True)
class SRL(Baseline):
    """baselines/srl.py"""

    description = "Supervised representation learning on the base images' labels."

    teacher: Path | None = setting(
        None, "SRL-simple checkpoint to distil into a new model (SRL-distill)",
        metavar="PATH", fixed=True,
    )  # fmt: skip
    distill_t: float = setting(4.0, "distillation temperature", low=1e-6, metavar="T", fixed=True)
    distill_weight: float = setting(
        0.5, "weight of the distillation loss; cross-entropy has 1 - W", low=0, high=1, metavar="W",
        fixed=True,
    )  # fmt: skip


register(
    Stage("srl_simple", "SRL-simple, baselines/srl.py", SRL),
    Stage("srl_distill", "SRL-distill, baselines/srl.py", SRL),
)


def main(argv: list[str] | None = None) -> None:
    run = start("srl_simple", argv)
    settings, base, device = run.settings, run.data.base, run.device
    require_classes(base)
    for name in ("distill_t", "distill_weight"):
        field = SRL.fields()[name]
        if not (settings.teacher or run.source) and getattr(settings, name) != field.default:
            raise InputError(f"{field.flag}: no effect without --teacher")
    labels = torch.tensor(base.labels, device=device)
    teacher = taught = None
    if settings.teacher:
        run = replace(run, stage="srl_distill")
        checkpoint = load_checkpoint(settings.teacher, ("srl_simple", "srl_distill"))
        recorded = {name: checkpoint["args"][name] for name in ("arch", "image_size")}
        settings.require_match(recorded, settings.teacher)
        require_trained_on(checkpoint, base, settings.teacher, ordered=True)
        note_on_epochs(checkpoint, settings.teacher)
        taught = {name: checkpoint[name] for name in ("epoch", "made_by")}
        if run.source and run.source.checkpoint.get("teacher") not in (None, taught):
            raise InputError(
                f"{settings.teacher} has been trained on or replaced since {run.source.path} began "
                "to learn from it; --overwrite starts the run again"
            )
        parts = query_encoder(checkpoint), student_classifier(checkpoint)
        teacher = torch.nn.Sequential(*parts)
        prepare(teacher, device, settings.amp)  # computes as the model that it teaches
    run.seed_weights()
    model = Supervised(settings.arch, len(base.classes), settings.image_size)

    def step(model, views, rows, epoch):
        logits = model(views[0])
        loss = F.cross_entropy(logits, labels[rows])
        if teacher:
            kl = tempered_kl(teacher(views[0]), logits, settings.distill_t)
            loss = (1 - settings.distill_weight) * loss + settings.distill_weight * kl
        correct = logits.argmax(dim=1) == labels[rows]
        return {"loss": loss, "accuracy": correct.float().mean()}

    train_baseline(run, base, model, step, views=1, teacher=taught)


if __name__ == "__main__":
    cli.run(main)
