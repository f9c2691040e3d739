"""Random and evaluation views."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from moco.augment import plain_view, random_view


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
    probabilities = [
        s.p for s in random_view(224).transforms if isinstance(s, transforms.RandomApply)
    ]
    assert probabilities == [0.8, 0.5]
    jitter = random_view(224).transforms[2].transforms[0]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4)
    assert jitter.hue is None  # no hue
    assert random_view(224, True).transforms[2].transforms[0].hue == (-0.1, 0.1)
    assert "RandomGrayscale" not in steps


def test_blur_strength(picture):
    blur = random_view(48).transforms[3].transforms[0]
    torch.manual_seed(0)
    spread = [np.asarray(blur(picture), dtype=float).std() for _ in range(40)]
    assert min(spread) < 40 < 60 < max(spread)  # of white noise: strong to weak blur


def test_plain_view_only_resizes(picture):
    found = plain_view(32)(picture)
    expected = transforms.functional.to_tensor(picture.resize((32, 32), Image.BILINEAR))
    assert torch.equal(found, expected)
