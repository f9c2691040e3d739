"""Unsupervised meta-learning with tasks of random images and augmentation, UMTRA (Khodadadeh et al.
2019, arXiv 1811.11819), on the base images without labels.

python -m baselines.umtra DATA --model-path OUT
python test.py DATA --resume OUT --k-shot 5 --seed 0

MAML on episodes of N different images: an image is the one support image of its class, random views
of it are its query images. One training serves tasks of any number of shots.

The views are those of MoCo v2 (--no-aug-plus turns it off). Meta-batch, inner learning rate and 50
steps on a task are those of the authors' miniImageNet code.
"""

from dataclasses import dataclass

import numpy as np

from moco.config import Stage, register
from trainer import cli
from trainer.settings import with_default

from .maml import MAML, Adaptation, start_maml, train_maml


@dataclass(frozen=True, kw_only=True)
class UMTRASettings(Adaptation):
    """baselines/umtra.py"""

    description = "UMTRA: MAML on random base images and their augmentations, without labels."
    k_shot = 1  # the image itself

    batch_size: int = with_default(Adaptation, "batch_size", 8)
    aug_plus: bool = with_default(Adaptation, "aug_plus", True)
    query: int = with_default(Adaptation, "query", 5)
    test_steps: int = with_default(Adaptation, "test_steps", 50)


register(Stage("umtra", "UMTRA, baselines/umtra.py", UMTRASettings, adapts=MAML))


def main(argv: list[str] | None = None) -> None:
    run = start_maml("umtra", argv)
    each_image = np.arange(len(run.data.base))[:, None]  # a class of its own
    train_maml(run, [each_image], query=0, views=run.settings.query, plain=True)


if __name__ == "__main__":
    cli.run(main)
