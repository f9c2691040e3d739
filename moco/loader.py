"""Batches of random views, in an order that depends only on seed and epoch."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import active_children

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info
from torchvision import transforms
from tqdm import tqdm

from common.errors import reason
from common.seeding import stream_seed
from datasets.cache import pixels
from datasets.images import ImageSet, read_image
from trainer.distributed import is_main, open_files_limit, rank, world_size
from trainer.signals import ignore as ignore_signals

from .augment import random_view
from .batch_augment import apply, draw_views, to_float

CHUNK = 256  # steps whose views' parameters are drawn together

FILES = 256  # fewer open files may not suffice for shared memory: each tensor of a batch is a file


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

    The views depend only on the key and the seed, not on the process that makes them.
    """

    def __init__(self, images: ImageSet, transform: transforms.Compose, views: int, seed: int):
        self.paths = images.paths
        self.transform = transform
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, row = key
        image = read_image(self.paths[row])
        with seeded(stream_seed("training views", self.seed, epoch, row)):
            return [self.transform(image) for _ in range(self.views)], row


class ImageLoader(DataLoader):
    """Loader of views, B×3×S×S, or of (views, rows), that can do without shared memory.

    Where that or the number of open files is short, as in containers, batches of the data-loading
    processes come through a pipe; where none can be started, this process loads.
    """

    def __init__(self, dataset: Dataset, workers: int = 0, **options):
        super().__init__(
            dataset, num_workers=workers, collate_fn=collate, worker_init_fn=ignore_signals,
            **options,
        )  # fmt: skip
        self.told = False  # that batches come through a pipe

    def __iter__(self) -> Iterator:
        for batch in self.start():
            views = batch[0] if isinstance(batch, list) else [batch]
            if isinstance(views[0], np.ndarray) and not self.told:
                note(
                    "shared memory (/dev/shm) or the limit of open files is small: sending batches "
                    "by a pipe; enlarge it (docker run --shm-size=8g; ulimit -n 4096), or load "
                    "in the main process (--workers 0)"
                )
                self.told = True
            views = [torch.as_tensor(view) for view in views]
            yield [views, torch.as_tensor(batch[1])] if isinstance(batch, list) else views[0]

    def start(self) -> Iterator:
        """Start the data-loading processes, or none if the machine does not let them start."""
        running = active_children()
        hook = sys.unraisablehook
        sys.unraisablehook = lambda _: None  # torch's half-made iterator fails to clean up
        try:
            return super().__iter__()
        except OSError as error:  # too few files or processes, or no semaphores in /dev/shm
            if self.num_workers == 0:
                raise
            note(f"cannot start data-loading processes ({reason(error)}): using the main process")
        finally:
            sys.unraisablehook = hook
        for process in set(active_children()).difference(running):
            process.kill()
        self.num_workers = 0
        return super().__iter__()


def note(text: str) -> None:
    """Print a note on rank 0, above the progress bar."""
    if is_main():
        tqdm.write(f"note: {text}")


def collate(samples: list) -> Tensor | np.ndarray | list:
    """Return a batch of views, or of [views, rows]; NumPy arrays are sent through a pipe."""
    if isinstance(samples[0], Tensor):
        return stacked(samples)
    views, rows = zip(*samples)
    return [[stacked(view) for view in zip(*views)], np.array(rows)]


def stacked(views: Sequence[Tensor]) -> Tensor | np.ndarray:
    """Stack views, in a data-loading process into shared memory if there is enough."""
    if get_worker_info() is None:
        return torch.stack(list(views))
    if open_files_limit() >= FILES:
        with contextlib.suppress(OSError, RuntimeError):
            return default_collate(list(views))
    return torch.stack(list(views)).numpy()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random stream on the CPU, and restore it after the block."""
    with torch.random.fork_rng(devices=[]):
        # CPU only: torch.manual_seed also queues a call for each unused GPU.
        torch.default_generator.manual_seed(seed)
        yield


class SupportCopies(Dataset):
    """Row i is copy i % `copies` of image i // `copies`, an augmented view.

    A copy depends only on the image's id and its own number, so that an image has the same copies
    in every task.
    """

    def __init__(self, images: ImageSet, transform: transforms.Compose, copies: int):
        self.images = images
        self.transform = transform
        self.copies = copies

    def __len__(self) -> int:
        return len(self.images) * self.copies

    def __getitem__(self, row: int) -> Tensor:
        number, copy = divmod(row, self.copies)
        image = read_image(self.images.paths[number])
        with seeded(stream_seed(f"support copies of {self.images.ids[number]}", copy)):
            return self.transform(image)


class BatchViews:
    """Loader of (`views` random views, rows) for `batches`, augmented batchwise on `device`.

    pixels: M×S×S×3, uint8. They are moved to a GPU if they fit into half of its free memory.
    `compile`: compile the augmentation.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        batches: Sampler,
        views: int,
        seed: int,
        aug_plus: bool,
        device: torch.device,
        compile: bool = False,
    ):
        self.pixels, self.batch_sampler, self.device = torch.from_numpy(pixels), batches, device
        self.views, self.seed, self.aug_plus = views, seed, aug_plus
        self.apply = torch.compile(apply, dynamic=False) if compile else apply
        if device.type == "cuda" and 2 * pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
            self.pixels = self.pixels.to(device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        epoch, size = self.batch_sampler.epoch, self.pixels.shape[1]
        order = torch.tensor([[row for _, row in keys] for keys in self.batch_sampler])
        on_device = order.to(self.device)  # once per epoch: a copy per step would wait for the GPU
        indices = on_device if self.pixels.device == self.device else order
        # Parameters of many steps at once: drawn for each, they take as many kernels as the views.
        for chunk, chunk_indices in zip(on_device.split(CHUNK), indices.split(CHUNK)):
            all_rows = chunk.flatten()
            drawn = draw_views(all_rows, size, self.views, self.seed, epoch, self.aug_plus)
            parameters = zip(*(view.split(chunk.shape[1]) for view in drawn))
            for rows, index, of_batch in zip(chunk, chunk_indices, parameters):
                images = to_float(self.pixels[index].to(self.device, non_blocking=True))
                yield [self.apply(images, p) for p in of_batch], rows


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
    compile: bool = False,
) -> DataLoader | BatchViews:
    """Return a loader of (`views` random views, rows) for `batches` of `images`.

    `views_by`: "pil", one view at a time in `workers` processes (0: in this one); "batch", a whole
    batch at once on `device`, which requires `cached` images, by compiled code if `compile`.
    """
    if views_by == "batch":
        return BatchViews(pixels(images), batches, views, seed, aug_plus, device, compile)
    data = RandomViews(images, random_view(image_size, aug_plus), views, seed)
    return view_loader(data, batches, workers, device)


def view_loader(
    data: RandomViews, batches: Sampler, workers: int, device: torch.device
) -> DataLoader:
    """Return a loader of (views, rows) whose views are made in `workers` processes."""
    return ImageLoader(
        data,
        workers,
        batch_sampler=batches,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # leaves the global random state to the training steps
        pin_memory=device.type == "cuda",
    )
