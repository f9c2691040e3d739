"""CACTUs-MAML (Hsu et al. 2019, arXiv 1810.02334): MAML on clusters of the base images, without
labels.

python -m baselines.cactus_maml DATA --encoder STAGE_A --model-path OUT
python test.py DATA --resume OUT --k-shot 5 --seed 0

Training is 1-shot; it serves tasks of any number of shots. Meta-batch, query images, inner learning
rate and 50 steps on a task are those of the authors' miniImageNet code.
"""

from dataclasses import dataclass

from moco.config import Stage, register
from trainer import cli
from trainer.settings import with_default

from .clusters import Clustering, cluster_base
from .maml import MAML, Adaptation, start_maml, train_maml


@dataclass(frozen=True, kw_only=True)
class CactusMAMLSettings(Clustering, Adaptation):
    """baselines/cactus_maml.py"""

    description = "CACTUs-MAML: MAML on clusters of the base images, without labels."

    batch_size: int = with_default(Adaptation, "batch_size", 8)
    query: int = with_default(Adaptation, "query", 5)
    test_steps: int = with_default(Adaptation, "test_steps", 50)


register(
    Stage("cactus_maml", "CACTUs-MAML, baselines/cactus_maml.py", CactusMAMLSettings, adapts=MAML)
)


def main(argv: list[str] | None = None) -> None:
    run = start_maml("cactus_maml", argv)
    groups, query, about = cluster_base(run, run.settings.n_way)
    train_maml(run, groups, query, **about)


if __name__ == "__main__":
    cli.run(main)
