"""What the metric methods share: they compare embeddings, and so train with any number of classes,
whatever the tasks have."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import InputError
from trainer.settings import setting, with_default

from .common import Start
from .episodes import Episodic, EpisodicModel, Groups, class_groups, query_size, train_episodes

MOST_WAYS = 20


@dataclass(frozen=True, kw_only=True)
class Metric(Episodic):
    """Settings of the metric methods."""

    batch_size: int = with_default(Episodic, "batch_size", 1)
    episode_way: int | None = setting(
        None, f"classes of an episode (default: all, at most {MOST_WAYS})", low=2, metavar="N",
        fixed=True,
    )  # fmt: skip
    k_shot: int = setting(
        5, "support images per class of an episode, best the number that tasks have", low=1,
        metavar="K", fixed=True,
    )  # fmt: skip


def train_metric(
    start: Start, partitions: Sequence[Groups] | None = None, query: int = 0,
    **more: object,
) -> None:  # fmt: skip
    """Meta-train a stage's model on episodes of `query` query images per class from `partitions`,
    by default the base classes.

    Raises InputError if there are too few classes or images, and like `train_episodes`.
    """
    settings, base = start.settings, start.data.base
    if partitions is None:
        partitions = [class_groups(base)]
        query = query_size(partitions[0], settings.k_shot, settings.query)
    most = min(map(len, partitions))
    n_way = settings.episode_way or min(most, MOST_WAYS)
    if not 2 <= n_way <= most:
        raise InputError(
            f"--episode-way must be in [2, {most}], the number of classes, got {n_way}"
        )

    def step(model: EpisodicModel, episodes: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        found = [model.episode_loss(support, query, n_way) for support, query in episodes]
        loss, accuracy = (torch.stack(values).mean() for values in zip(*found))
        return {"loss": loss, "accuracy": accuracy}

    train_episodes(start, partitions, n_way, query, step, **more)
