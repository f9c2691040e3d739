"""Episodes for meta-training: N classes with K support and Q query images each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Sampler

from common.errors import InputError
from common.seeding import stream_seed
from datasets.cache import pixels
from datasets.images import ImageSet, read_image
from moco.augment import plain_view, random_view
from moco.batch_augment import draw_views, to_float
from moco.loader import BatchViews, RandomViews, view_loader
from moco.train import begin, knn_scorer
from trainer.launch_plan import readers_of
from trainer.optimizer import adam
from trainer.settings import recipe, setting, with_default
from trainer.trainer import Trainer

from .common import Baseline, Start, require_classes, start_run

Groups = Sequence[np.ndarray]  # the rows of each class or cluster


@dataclass(frozen=True, kw_only=True)
class Episodic(Baseline):
    """Settings of all meta-learning methods."""

    batch_size: int = recipe(
        4, "episodes per update", flags=("-b", "--meta-batch"), low=1, metavar="T",
    )  # fmt: skip
    lr: float = with_default(Baseline, "lr", 1e-3)
    momentum: float = recipe(0.9, "β1 of Adam", low=0, below=1, metavar="M")
    wd: float = with_default(Baseline, "wd", 0.0)
    clip: float = setting(
        10.0, "norm to which a larger gradient is scaled down", low=1e-6, metavar="NORM",
        fixed=True,
    )  # fmt: skip
    query: int = setting(
        15, "query images per class of an episode; fewer if a class is too small", low=1,
        metavar="Q", fixed=True,
    )  # fmt: skip


class EpisodicModel(nn.Module):
    """A model trained in episodes: only BatchNorm has a training mode, as dropout and DropBlock are
    off in all of them."""

    def episode_loss(self, support: Tensor, query: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy of an episode, from the images of its support set, N·K×3×S×S,
        and query set, N·Q×3×S×S, both class after class."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "EpisodicModel":
        super().train(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        self.training = mode
        return self


class EpisodeBatches(Sampler):
    """Batches of `episodes` random episodes, as keys (episode number, row), class after class.

    An episode takes `n_way` groups of one of the `partitions`, in random order, and `per_class`
    images of each. It depends only on the seed and its number. Each key becomes `views` images:
    an epoch shows no more images than there are, but has at least one batch.
    """

    def __init__(
        self,
        partitions: Sequence[Groups],
        images: int,
        episodes: int,
        n_way: int,
        per_class: int,
        seed: int,
        views: int = 1,
    ):
        self.partitions, self.episodes = partitions, episodes
        self.n_way, self.per_class, self.seed = n_way, per_class, seed
        self.batch_size = episodes * n_way * per_class * views  # in images
        self.batches = max(1, images // self.batch_size)
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first, len(self)):
            first = (self.epoch * len(self) + batch) * self.episodes
            yield [key for n in range(first, first + self.episodes) for key in self.draw(n)]

    def draw(self, number: int) -> list[tuple[int, int]]:
        """Return the keys of an episode, N·`per_class`."""
        rng = np.random.default_rng(stream_seed("episode", self.seed, number))
        groups = self.partitions[rng.integers(len(self.partitions))]
        chosen = rng.choice(len(groups), self.n_way, replace=False)
        drawn = (rng.choice(groups[i], self.per_class, replace=False) for i in chosen)
        return [(number, int(row)) for rows in drawn for row in rows]


def class_groups(images: ImageSet) -> Groups:
    """Return the rows of each class, of at least two."""
    require_classes(images)
    labels = np.array(images.labels)
    return [np.flatnonzero(labels == label) for label in range(len(images.classes))]


def query_size(classes: Groups, k_shot: int, query: int) -> int:
    """Return the number of query images per class: `query`, or as many as the smallest class leaves
    beside its support images, with a note.

    Raises InputError if that is none.
    """
    smallest = min(map(len, classes))
    left = smallest - k_shot
    if left < 1:
        raise InputError(
            f"--k-shot {k_shot}: an episode needs a query image as well, but the smallest class "
            f"has {smallest} images"
        )
    if left < query:
        print(f"note: {left} query images per class instead of {query}: the smallest class has "
              f"{smallest} images")  # fmt: skip
    return min(left, query)


def split_episodes(
    images: Tensor, episodes: int, n_way: int, k_shot: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the support set, N·K×…, and the query set, N·Q×…, of each episode in a batch, class
    after class."""
    for episode in images.unflatten(0, (episodes, n_way, -1)):
        yield episode[:, :k_shot].flatten(0, 1), episode[:, k_shot:].flatten(0, 1)


def labels_of(images: Tensor, n_way: int) -> Tensor:
    """Return the labels 0…N−1 of images that lie class after class."""
    return torch.arange(n_way, device=images.device).repeat_interleave(len(images) // n_way)


class PlainAndRandomViews(RandomViews):
    """The image itself, resized as its random views are, and these."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        views, row = super().__getitem__(key)
        plain = plain_view(views[0].shape[-1])
        return [plain(read_image(self.paths[row])), *views], row


class EpisodeBatchViews(BatchViews):
    """`BatchViews` of episodes: the same image has other views in another episode."""

    plain = False  # whether the image itself comes first

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        keys = torch.tensor(list(self.batch_sampler))  # steps×B×2
        on_device = keys.to(self.device)
        indices = on_device if self.pixels.device == self.device else keys
        for (numbers, rows), (_, index) in zip(on_device.mT, indices.mT):
            images = to_float(self.pixels[index].to(self.device, non_blocking=True))
            streams = numbers * len(self.pixels) + rows
            size, seed = self.pixels.shape[1], self.seed
            drawn = draw_views(streams, size, self.views, seed, 0, self.aug_plus)
            views = [self.apply(images, p) for p in drawn]
            yield [images, *views] if self.plain else views, rows


def episode_loader(
    images: ImageSet,
    batches: EpisodeBatches,
    settings: Episodic,
    device: torch.device,
    views: int = 1,
    plain: bool = False,
) -> DataLoader | BatchViews:
    """Return a loader of (views, rows): `views` random views, after the image itself if `plain`."""
    seed, aug_plus = settings.seed, settings.aug_plus
    if settings.views_by == "batch":
        loader = EpisodeBatchViews(pixels(images), batches, views, seed, aug_plus, device)
        loader.plain = plain
        return loader
    dataset = PlainAndRandomViews if plain else RandomViews
    data = dataset(images, random_view(settings.image_size, aug_plus), views, seed)
    return view_loader(data, batches, readers_of(settings), device)


def train_episodes(
    start: Start,
    partitions: Sequence[Groups],
    n_way: int,
    query: int,
    step_on: Callable[[Any, Iterator[tuple[Tensor, Tensor]]], dict[str, Tensor]],
    views: int = 1,
    plain: bool = False,
    **more: object,
) -> None:
    """Train the model of a stage with Adam, in a single process, on episodes with --k-shot support
    and `query` query images of each of `n_way` classes from `partitions`.

    `step_on(model, episodes)`: a step on the (support set, query set) of each episode of a batch,
    see `split_episodes`; returns the loss and values to log. Of an image's views, see
    `episode_loader`, all lie one after the other; the first `k_shot` of a class are its support.
    `more`: see `start_run`.
    """
    if start.settings.compile:
        raise InputError("--compile: meta-learning is not compiled")
    start, device = start.replaced(compile=False), start.device
    model, settings, base = start.model(), start.settings, start.data.base
    number, k_shot = settings.batch_size, settings.k_shot
    batches = EpisodeBatches(
        partitions, len(base), number, n_way, k_shot + query, settings.seed, views + plain
    )
    run, images = start_run(start, base, **more)
    begin(model, settings, run)
    loader = episode_loader(images, batches, settings, device, views, plain)

    def step(model: nn.Module, views: list[Tensor], rows: Tensor, epoch: int) -> dict[str, Tensor]:
        batch = torch.stack(views, dim=1).flatten(0, 1)
        return step_on(model, split_episodes(batch, number, n_way, k_shot))

    trainer = Trainer(
        model, step, images, batches, loader, settings, run, device, adam, settings.clip,
    )  # fmt: skip
    trainer.fit(score=knn_scorer(model, images, settings, device))
