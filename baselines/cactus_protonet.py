"""CACTUs-ProtoNets (Hsu et al. 2019, arXiv 1810.02334): Prototypical Networks on clusters of the
base images, without labels.

python -m baselines.cactus_protonet DATA --encoder STAGE_A --model-path OUT
python test.py DATA --resume OUT --k-shot 5 --seed 0

Training is 1-shot, as in the authors' code; it serves tasks of any number of shots.
"""

from dataclasses import dataclass

from moco.config import Stage, register
from trainer import cli

from .clusters import Clustering, cluster_base
from .common import start
from .metric import Metric, train_metric
from .protonet import ProtoNet


@dataclass(frozen=True, kw_only=True)
class CactusProtoNetSettings(Clustering, Metric):
    """baselines/cactus_protonet.py"""

    description = "CACTUs-ProtoNets: Prototypical Networks on clusters of the base images."


register(
    Stage(
        "cactus_protonet", "CACTUs-ProtoNets, baselines/cactus_protonet.py",
        CactusProtoNetSettings, adapts=ProtoNet,
    )
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    run = start("cactus_protonet", argv)
    groups, query, about = cluster_base(run, run.settings.episode_way or 2)
    train_metric(run, groups, query, **about)


if __name__ == "__main__":
    cli.run(main)
