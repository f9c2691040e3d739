"""Work on many images in threads."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T, R = TypeVar("T"), TypeVar("R")
CHUNK = 256  # results that are held at once, such as decoded images


def in_threads(
    function: Callable[[T], R], items: Iterable[T], progress: str, unit: str = "img"
) -> Iterator[R]:
    """Yield `function` of each of `items`, in order, with a progress bar called `progress`.

    For functions that release the GIL, as decoding and hashing do.
    """
    bar = iter(tqdm(items, desc=progress, unit=unit, delay=2, leave=False, disable=None))
    with ThreadPoolExecutor() as pool:
        while chunk := list(itertools.islice(bar, CHUNK)):
            yield from pool.map(function, chunk)
