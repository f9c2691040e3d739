"""The views, and that a view depends on nothing but what it is named by."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from common.seeding import stream_seed
from datasets import open_dataset
from moco.augment import plain_view, random_view
from moco.loader import EpochBatches, RandomViews


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("aug_plus", [False, True])
def test_random_view(picture, aug_plus):
    view = random_view(48, aug_plus)
    torch.manual_seed(0)
    first, second = view(picture), view(picture)
    assert first.shape == (3, 48, 48)
    assert 0 <= first.min() and first.max() <= 1
    assert not torch.equal(first, second)


def test_the_papers_settings():
    steps = {type(step).__name__: step for step in random_view(224).transforms}
    crop = steps["RandomResizedCrop"]
    assert crop.scale == (0.2, 1.0) and crop.size == (224, 224)
    chances = [s.p for s in random_view(224).transforms if isinstance(s, transforms.RandomApply)]
    assert chances == [0.8, 0.5]
    jitter = random_view(224).transforms[2].transforms[0]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4)
    assert jitter.hue is None  # no hue
    assert random_view(224, True).transforms[2].transforms[0].hue == (-0.1, 0.1)
    assert "RandomGrayscale" not in steps


def test_blur_strength(picture):
    blur = random_view(48).transforms[3].transforms[0]
    torch.manual_seed(0)
    spread = [np.asarray(blur(picture), dtype=float).std() for _ in range(40)]
    assert min(spread) < 40 < 60 < max(spread)  # white noise: from nearly gone to nearly kept


def test_plain_view_only_resizes(picture):
    found = plain_view(32)(picture)
    expected = transforms.functional.to_tensor(picture.resize((32, 32), Image.BILINEAR))
    assert torch.equal(found, expected)


def test_views_depend_on_seed_epoch_and_image_alone(data):
    base = open_dataset(data).base

    def all_views(workers, seed, epoch):
        batches = EpochBatches(len(base), 8, seed=1)
        batches.epoch = epoch
        loader = DataLoader(
            RandomViews(base, random_view(32), 2, seed), batch_sampler=batches, num_workers=workers
        )
        return {int(r): v for views, rows in loader for r, *v in zip(rows, *views)}

    here, there = all_views(0, 5, 0), all_views(2, 5, 0)
    assert here.keys() == there.keys() and len(here) == 32
    for row, (im_q, im_k) in here.items():
        assert torch.equal(im_q, there[row][0]) and torch.equal(im_k, there[row][1])
        assert not torch.equal(im_q, im_k)
    for other in (all_views(0, 6, 0), all_views(0, 5, 1)):
        assert not any(torch.equal(other[r][0], here[r][0]) for r in here.keys() & other.keys())


def test_views_leave_the_callers_randomness_alone(data):
    views = RandomViews(open_dataset(data).base, random_view(32), 1, seed=0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    views[0, 0]
    assert torch.equal(torch.rand(2), expected)


def test_stream_seed():
    numbers = [(), (1,), (1, 0), (0, 1), (1, 0, 0), (11,)]
    numbers += [(a, b) for a in range(2, 20) for b in range(20)]
    seeds = {stream_seed(purpose, *n) for purpose in ("views", "order") for n in numbers}
    assert len(seeds) == 2 * len(numbers)
    assert stream_seed("views", 1, 2) == stream_seed("views", np.int64(1), 2)
