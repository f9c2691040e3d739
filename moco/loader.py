"""Batches of random views, in an order that depends only on seed and epoch."""

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
    """This rank's share of each batch of a shuffled epoch, as keys (epoch, row).

    Starts at batch `first`. `batch_size` is over all ranks. The order depends only on seed and
    epoch, not on the number of ranks; the last, incomplete batch is dropped.
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
        offset = self.first * self.batch_size + rank() * share
        for start in range(offset, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, row) for row in order[start : start + share]]


class RandomViews(Dataset):
    """`views` random views of an image, and its row, for a key (epoch, row).

    The views depend only on the key, the seed and `purpose`, not on the process that makes them.
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
            # CPU only: torch.manual_seed also queues a call for each unused GPU.
            seed = stream_seed(self.purpose, self.seed, epoch, row)
            torch.default_generator.manual_seed(seed)
            return [self.transform(image) for _ in range(self.views)], row


class BatchViews:
    """Loader of (`views` random views, rows) for `batches`, augmented batchwise on `device`.

    pixels: M×S×S×3, uint8. They are moved to a GPU if they fit into half of its free memory.
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
        on_device = order.to(self.device)  # once per epoch: a copy per step would wait for the GPU
        indices = on_device if self.pixels.device == self.device else order
        for rows, index in zip(on_device, indices):
            images = self.pixels[index].to(self.device, non_blocking=True)
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
    """Return a loader of (`views` random views, rows) for `batches` of `images`.

    `views_by`: "pil", one view at a time in `workers` processes (0: in this one); "batch", a whole
    batch at once on `device`, which requires `cached` images.
    """
    if views_by == "batch":
        return BatchViews(pixels(images), batches, views, seed, aug_plus, device)
    data = RandomViews(images, random_view(image_size, aug_plus), views, seed)
    return view_loader(data, batches, workers, device)


def view_loader(
    data: RandomViews, batches: Sampler, workers: int, device: torch.device
) -> DataLoader:
    """Return a loader of (views, rows) whose views are made in `workers` processes."""
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # leaves the global random state to the training steps
        pin_memory=device.type == "cuda",
    )


@contextlib.contextmanager
def closing_loader(
    make_loader: Callable[[], DataLoader | BatchViews],
) -> Iterator[DataLoader | BatchViews]:
    """Open a loader and shut down its workers on leaving the block.

    The workers ignore signals, so an error would otherwise wait for them forever.
    """
    loader = make_loader()
    try:
        yield loader
    finally:
        if iterator := getattr(loader, "_iterator", None):
            iterator._shutdown_workers()
