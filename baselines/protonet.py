"""Prototypical Networks (Snell et al. 2017, arXiv 1703.05175), meta-trained on the base classes.

python -m baselines.protonet DATA --model-path OUT --k-shot 5
python test.py DATA --resume OUT --k-shot 5 --seed 0

A class is represented by the mean embedding of its support images, its prototype; a query image
gets the class of the nearest one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.config import Stage, register
from models import build_encoder
from trainer import cli

from .common import start
from .episodes import EpisodicModel, labels_of
from .metric import Metric, train_metric


@dataclass(frozen=True, kw_only=True)
class ProtoNetSettings(Metric):
    """baselines/protonet.py"""

    description = "Prototypical Networks, meta-trained on the base classes."


def prototypes(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the mean embedding of each class, eq. (1): M×D, labelled 0…N−1, to N×D."""
    n_way = int(labels.max()) + 1
    return torch.stack([embeddings[labels == n].mean(dim=0) for n in range(n_way)])


def prototype_logits(embeddings: Tensor, centres: Tensor) -> Tensor:
    """Return the logits of eq. (2), M×N: minus the squared Euclidean distances of M×D embeddings
    to the N×D prototypes."""
    return -(embeddings[:, None] - centres).square().sum(dim=2)


class ProtoNet(EpisodicModel):
    """The embedding f_φ: a backbone without head."""

    def __init__(self, arch: str, image_size: int):
        super().__init__()
        self.query_encoder = build_encoder(arch, None, image_size=image_size)

    def episode_loss(self, support: Tensor, query: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
        """Return Algorithm 1's loss, and accuracy; support and query images share a batch."""
        embeddings = self.query_encoder(torch.cat([support, query]))
        centres = prototypes(embeddings[: len(support)], labels_of(support, n_way))
        logits = prototype_logits(embeddings[len(support) :], centres)
        truth = labels_of(query, n_way)
        return F.cross_entropy(logits, truth), (logits.argmax(dim=1) == truth).float().mean()

    def embed(self, images: Tensor) -> Tensor:
        return self.query_encoder(images)

    def adapt(self, embeddings: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the probabilities of eq. (2) as a function of embeddings."""
        centres = prototypes(embeddings, labels)
        return lambda queries: prototype_logits(queries, centres).softmax(dim=1)


register(
    Stage(
        "protonet", "Prototypical Networks, baselines/protonet.py", ProtoNetSettings,
        adapts=ProtoNet,
    )
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    train_metric(start("protonet", argv))


if __name__ == "__main__":
    cli.run(main)
