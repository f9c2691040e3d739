"""Relation Networks (Sung et al. 2018, arXiv 1711.06025), meta-trained on the base classes.

python -m baselines.relationnet DATA --model-path OUT --k-shot 5
python test.py DATA --resume OUT --k-shot 5 --seed 0

The feature maps of a class's support images are added up; a second network scores how well the map
of a query image relates to the sum.

In the paper the embedding pools twice (19×19 maps at 84 pixels) and the relation module's
convolutions have no padding. The maps of our backbones are smaller (5×5), so that they are padded,
and averaged to 3×3, the paper's size, before the linear layers. BatchNorm's momentum is 0.1 instead
of 1, with which evaluation would use the last batch's statistics. The norm of both gradients
together is clipped to the 0.5 that the authors' code has for each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError, listed
from moco.config import Stage, register
from models import build_encoder
from trainer import cli
from trainer.settings import with_default

from .common import start
from .episodes import EpisodicModel, labels_of
from .metric import Metric, train_metric

WIDTH, HIDDEN = 64, 8  # of the relation module


@dataclass(frozen=True, kw_only=True)
class RelationNetSettings(Metric):
    """baselines/relationnet.py"""

    description = "Relation Networks, meta-trained on the base classes."

    clip: float = with_default(Metric, "clip", 0.5)


def class_maps(maps: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of each class's maps: M×C×h×w, labelled 0…N−1, to N×C×h×w."""
    n_way = int(labels.max()) + 1
    return torch.stack([maps[labels == n].sum(dim=0) for n in range(n_way)])


def pairs(maps: Tensor, class_maps: Tensor) -> Tensor:
    """Concatenate each of M maps to each of N class maps: M·N×2C×h×w, the class's first."""
    many, n_way = len(maps), len(class_maps)
    classes = class_maps.repeat(many, 1, 1, 1)
    return torch.cat([classes, maps.repeat_interleave(n_way, dim=0)], dim=1)


def relation_loss(relations: Tensor, labels: Tensor) -> Tensor:
    """Return eq. (2) as a mean: squared error of M×N relations in [0, 1] to 1 for the true class
    and 0 for the others."""
    return F.mse_loss(relations, F.one_hot(labels, relations.shape[1]).to(relations.dtype))


def block(channels: int) -> nn.Sequential:
    """Return a convolutional block of the relation module; maps of any size ≥ 1 remain ≥ 1."""
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, ceil_mode=True),
    )


def initialise(module: nn.Module) -> None:
    """Initialise a layer of the relation module as the authors' code does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.ones_(module.bias)


class RelationNet(EpisodicModel):
    """The embedding f_φ, a backbone's last map, and the relation module g_φ.

    Raises InputError for a backbone without a map, such as a transformer.
    """

    def __init__(self, arch: str, image_size: int, k_shot: int):
        super().__init__()
        self.k_shot = k_shot
        self.query_encoder = build_encoder(arch, None, image_size=image_size)
        with torch.no_grad():  # has it a map?
            self.query_encoder.eval().feature_map(torch.zeros(1, 3, image_size, image_size))
        self.relation = nn.Sequential(
            block(2 * self.query_encoder.out_features),
            block(WIDTH),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(9 * WIDTH, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, 1),
        )
        self.relation.apply(initialise)

    def relation_logits(self, maps: Tensor, class_maps: Tensor) -> Tensor:
        """Return the relations of M maps to N class maps before the sigmoid, M×N."""
        return self.relation(pairs(maps, class_maps)).view(len(maps), len(class_maps))

    def episode_loss(self, support: Tensor, query: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
        """Return eq. (2)'s loss, and accuracy; support and query images share a batch."""
        maps = self.query_encoder.feature_map(torch.cat([support, query]))
        classes = class_maps(maps[: len(support)], labels_of(support, n_way))
        relations = self.relation_logits(maps[len(support) :], classes).sigmoid()
        truth = labels_of(query, n_way)
        accuracy = (relations.argmax(dim=1) == truth).float().mean()
        return relation_loss(relations, truth), accuracy

    def embed(self, images: Tensor) -> Tensor:
        return self.query_encoder.feature_map(images)

    def adapt(self, embeddings: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the relations, divided by their sum, as a function of maps.

        Raises InputError if a class has not as many support images as in training.
        """
        if (shots := sorted({*labels.bincount().tolist()})) != [self.k_shot]:
            raise InputError(
                f"--k-shot {listed(shots)}: the relation network was trained with --k-shot "
                f"{self.k_shot}, and a class is the sum of its support images"
            )
        classes = class_maps(embeddings, labels)
        return lambda maps: F.logsigmoid(self.relation_logits(maps, classes)).softmax(dim=1)


register(
    Stage(
        "relationnet", "Relation Networks, baselines/relationnet.py", RelationNetSettings,
        adapts=RelationNet,
    )
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    train_metric(start("relationnet", argv))


if __name__ == "__main__":
    cli.run(main)
