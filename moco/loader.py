"""Batches of random views, in an order that seed and epoch alone decide."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from common.seeding import stream_seed
from datasets.cache import pixels
from datasets.images import ImageSet, read_image
from trainer.distributed import rank, world_size
from trainer.signals import ignore as ignore_signals

from .augment import random_view
from .batch_augment import random_views


class EpochBatches(Sampler):
    """This process's share of each batch of a shuffled epoch, as keys (epoch, row), from batch
    `first` on.

    `batch_size` counts all processes' images. The order depends on seed and epoch alone, not on
    how many processes share it; the last images that fill no batch are left out.
    """

    def __init__(self, images: int, batch_size: int, seed: int):
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(stream_seed("order", self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator).tolist()
        share = self.batch_size // world_size()
        begin = self.first * self.batch_size + rank() * share
        for start in range(begin, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, row) for row in order[start : start + share]]


class RandomViews(Dataset):
    """`views` random views of an image, and its row.

    The key (epoch, row) alone, with the run's seed and the views' purpose, decides the views,
    whichever process or worker makes them.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: transforms.Compose,
        views: int,
        seed: int,
        purpose: str = "training views",
    ):
        self.paths = images.paths
        self.transform = transform
        self.views = views
        self.seed = seed
        self.purpose = purpose

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, row = key
        image = read_image(self.paths[row])
        with torch.random.fork_rng(devices=[]):
            # Of the CPU alone: torch.manual_seed also queues a call for each GPU not yet in use.
            seed = stream_seed(self.purpose, self.seed, epoch, row)
            torch.default_generator.manual_seed(seed)
            return [self.transform(image) for _ in range(self.views)], row


class BatchViews:
    """`views` random views of each of `batches` in turn, and its rows: what a DataLoader gives, but
    made on `device` for a batch at once.

    pixels: M×S×S×3, 8 bits. All of them are put on the device where they take up no more than half
    of its free memory.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        batches: Sampler,
        views: int,
        seed: int,
        aug_plus: bool,
        device: torch.device,
    ):
        self.pixels, self.batch_sampler, self.device = torch.from_numpy(pixels), batches, device
        self.views, self.seed, self.aug_plus = views, seed, aug_plus
        if device.type == "cuda" and 2 * pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
            self.pixels = self.pixels.to(device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        epoch = self.batch_sampler.epoch
        order = torch.tensor([[row for _, row in keys] for keys in self.batch_sampler])
        there = order.to(self.device)  # once an epoch: a copy in each step would wait for the GPU
        for rows, own in zip(there, there if self.pixels.device == self.device else order):
            images = self.pixels[own].to(self.device, non_blocking=True)
            yield random_views(images, rows, self.views, self.seed, epoch, self.aug_plus), rows


def training_loader(
    images: ImageSet,
    batches: EpochBatches,
    views: int,
    seed: int,
    image_size: int,
    aug_plus: bool,
    views_by: str,
    workers: int,
    device: torch.device,
) -> DataLoader | BatchViews:
    """`views` random views of the images of each of `batches` in turn, and their rows.

    `views_by`: "pil", one view at a time in `workers` processes (0: in this one); "batch", all of a
    batch at once on `device`, for images that are `cached`.
    """
    if views_by == "batch":
        return BatchViews(pixels(images), batches, views, seed, aug_plus, device)
    return DataLoader(
        RandomViews(images, random_view(image_size, aug_plus), views, seed),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # not the steps' own, which a resumed run must find alike
        pin_memory=device.type == "cuda",
    )


@contextlib.contextmanager
def ending(make: Callable[[], DataLoader | BatchViews]) -> Iterator[DataLoader | BatchViews]:
    """The loader that `make` makes. However the block ends, its processes do, too. They ignore the
    signal on which they otherwise would, and an error that is on its way would wait for them for
    ever."""
    loader = make()
    try:
        yield loader
    finally:
        if readers := getattr(loader, "_iterator", None):
            readers._shutdown_workers()
