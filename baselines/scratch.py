"""Training from scratch: backbone and classifier on the support set only or, with --oracle (the
upper bound of Table 11), on 70 % of all rare images.

python -m baselines.scratch DATA --model-path OUT --k-shot 5 --seed 0
python test.py DATA --resume OUT --load-cla
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from datasets.open import draw, note_on_shared, with_contents
from moco.config import Drawing, Stage, register
from trainer import cli
from trainer.settings import setting

from .common import Baseline, Supervised, start, train_baseline


@dataclass(frozen=True, kw_only=True)
class Scratch(Drawing, Baseline):
    """baselines/scratch.py"""

    description = "Training from scratch on a task's support set."

    n_way: int | None = setting(None, "rare classes in the task (default: all)", low=1, metavar="N")
    k_shot: int = setting(5, "support images per class", low=1, metavar="K")
    oracle: bool = setting(
        False, "train on all training images of --rare-split (implied) instead of a support set"
    )


register(Stage("scratch", "training from scratch, baselines/scratch.py", Scratch, classifies=True))


def main(argv: list[str] | None = None) -> None:
    run = start("scratch", argv, "rare")
    settings, data, rare = run.settings, run.data, run.data.rare
    task = draw(
        data, settings.n_way, None if settings.oracle else settings.k_shot, settings.seed,
        settings.group_disjoint, settings.rare_split or settings.oracle,
    )  # fmt: skip
    task = with_contents(task, rare, settings.cache_folder)
    support, query = task.support(rare), task.query(rare)
    note_on_shared(task.shared(rare, data.groups), len(query))
    run = run.replaced(batch_size=min(settings.batch_size, len(support)))
    labels = torch.tensor(support.labels, device=run.device)
    run.seed_weights()
    model = Supervised(settings.arch, task.n_way, settings.image_size)

    def step(model, views, rows, epoch):
        logits = model(views[0])
        correct = logits.argmax(dim=1) == labels[rows]
        return {"loss": F.cross_entropy(logits, labels[rows]), "accuracy": correct.float().mean()}

    train_baseline(run, support, model, step, views=1, task=task)


if __name__ == "__main__":
    cli.run(main)
