"""The views of `augment.random_view` for a whole batch at once, on the batch's device.

Each image has its own parameters, drawn from the same distributions. Pixels are 32-bit numbers
here, where PIL rounds to 8 bits after each step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from common.seeding import stream_seed

from .augment import BLUR_P, CROP_RATIO, CROP_SCALE, FLIP_P, GREY_P, HUE, JITTER, JITTER_P, SIGMA

CROP_TRIES = 10
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as PIL has it


def uniforms(seed: int, rows: Tensor, count: int) -> Tensor:
    """B×`count` numbers, uniform in [0, 1), that depend on `seed` and the image's row alone: not on
    the batch it is in, nor on the device. (SplitMix64, Steele et al. 2014, as a counter.)"""

    def mix(z: Tensor) -> Tensor:
        z = (z ^ shifted(z, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed number
        z = (z ^ shifted(z, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
        return z ^ shifted(z, 31)

    def shifted(z: Tensor, by: int) -> Tensor:  # to the right, with zeros from the left
        return (z >> by) & ((1 << (64 - by)) - 1)

    golden = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15
    streams = mix(mix((rows + 1) * golden) + seed)
    steps = torch.arange(1, count + 1, device=rows.device) * golden
    return shifted(mix(streams[:, None] + steps), 40).float() / 2**24


@dataclass(frozen=True)
class Parameters:
    """What happens to each of B images: a tensor of B each, `order` B×4."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    order: Tensor  # of brightness 0, contrast 1, saturation 2, hue 3
    brightness: Tensor  # factors: 1 leaves the image as it is
    contrast: Tensor
    saturation: Tensor
    sigma: Tensor  # of the blur, in pixels; 0: none
    flip: Tensor  # whether
    hue: Tensor | None  # turns: 0 leaves the image as it is; None: all
    grey: Tensor | None  # whether; None: none


def draw_parameters(seed: int, rows: Tensor, size: int, aug_plus: bool = False) -> Parameters:
    """A random view's parameters for each of the images in `rows`, which are `size` pixels wide and
    high; `seed` is of the run, the epoch and the view."""
    u = iter(uniforms(seed, rows, 2 * CROP_TRIES + 15).unbind(dim=1))

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * next(u)

    box = _crop(u, size)
    order = torch.stack([next(u) for _ in range(4)], dim=1).argsort(dim=1)
    jittered = next(u) < JITTER_P
    factors = [torch.where(jittered, between(1 - JITTER, 1 + JITTER), 1.0) for _ in range(3)]
    hue = torch.where(jittered, between(-HUE, HUE), 0.0)
    sigma = torch.where(next(u) < BLUR_P, between(*SIGMA), 0.0)
    flip, grey = next(u) < FLIP_P, next(u) < GREY_P
    return Parameters(
        *box, order, *factors, sigma, flip, *((hue, grey) if aug_plus else (None, None))
    )


def _crop(u: Iterator[Tensor], size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width as torchvision's RandomResizedCrop draws them: the first of ten
    tries that fits, or the whole image."""
    area = torch.stack([next(u) for _ in range(CROP_TRIES)], dim=1)
    ratio = torch.stack([next(u) for _ in range(CROP_TRIES)], dim=1)
    area = size**2 * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * area)
    low, high = map(math.log, CROP_RATIO)
    ratio = torch.exp(low + (high - low) * ratio)
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    none = ~fits.any(dim=1)
    height = height.gather(1, first).squeeze(1).masked_fill(none, size)
    width = width.gather(1, first).squeeze(1).masked_fill(none, size)
    top = (next(u) * (size - height + 1)).floor()
    left = (next(u) * (size - width + 1)).floor()
    return top, left, height, width


def apply(images: Tensor, p: Parameters) -> Tensor:
    """The view with parameters `p` of each image. images: B×3×S×S, values 0–1; so is the result."""
    size = images.shape[-1]
    rows = interpolation(p.top, p.height, size)
    columns = interpolation(p.left, p.width, size)
    images = separable(images, rows, columns)
    images = jitter(images, p)
    if p.grey is not None:
        images = torch.where(p.grey[:, None, None, None], luminance(images), images)
    blur = gaussian(p.sigma, size)
    flipped = torch.where(p.flip[:, None, None], blur.flip(1), blur)
    return separable(images, blur, flipped)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A linear map of the rows and one of the columns of each image. images: B×3×S×S; `rows` and
    `columns`: B×S×S, from the pixels that are there (last) to those that come out."""
    return rows[:, None] @ images @ columns[:, None].mT


def interpolation(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The map that stretches `length` pixels from `start` on to `size`, bilinearly, and sees
    nothing beyond them: B×S×S."""
    pixels = torch.arange(size, device=start.device)
    step = (length / size)[:, None]
    place = start[:, None] + (pixels + 0.5) * step - 0.5  # B×S, where each pixel comes from
    place = torch.minimum(place.maximum(start[:, None]), (start + length - 1)[:, None])
    return (1 - (place[:, :, None] - pixels).abs()).clamp(min=0)


def gaussian(sigma: Tensor, size: int) -> Tensor:
    """The map that blurs by `sigma` pixels (0: not at all), the edges going on outside: B×S×S."""
    reach = math.ceil(3 * SIGMA[1])
    pixels = torch.arange(size, device=sigma.device)
    there = torch.arange(-reach, size + reach, device=sigma.device)
    distances = (there - pixels[:, None]).square()
    variance = sigma.square().clamp(min=1e-3)[:, None, None]  # of 1e-3: exp(−500) of a neighbour
    weights = torch.exp(-distances / (2 * variance))
    weights = weights / weights.sum(dim=2, keepdim=True)
    inside = weights[:, :, reach : reach + size].clone()
    inside[:, :, 0] += weights[:, :, :reach].sum(dim=2)
    inside[:, :, -1] += weights[:, :, reach + size :].sum(dim=2)
    return inside


def luminance(images: Tensor) -> Tensor:
    """How bright each pixel is: B×3×S×S to B×1×S×S."""
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def jitter(images: Tensor, p: Parameters) -> Tensor:
    """Brightness, contrast, saturation and hue, each image in its own order.

    The first three mix the image with another: black, its mean brightness, its luminance.
    """
    none = torch.ones_like(p.brightness)
    factors = torch.stack([p.brightness, p.contrast, p.saturation, none], dim=1)
    for what in p.order.unbind(dim=1):
        grey = luminance(images)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        kind = what[:, None, None, None]
        other = torch.where(kind == 2, grey, torch.where(kind == 1, mean, 0.0))
        factor = factors.gather(1, what[:, None])[:, :, None, None]
        mixed = (other + factor * (images - other)).clamp(0, 1)
        images = mixed if p.hue is None else torch.where(kind == 3, turned(images, p.hue), mixed)
    return images


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Colours turned around the hue circle by a part of it; B×3×S×S, `turns`: B."""
    value, _ = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    red, green, blue = images.unbind(dim=1)
    safe = chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # in sixths
    hue = hue + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):  # value − chroma · max(0, min(k, 4 − k, 1)), k = (offset + hue) mod 6
        k = (offset + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def as_values(images: Tensor) -> Tensor:
    """B×S×S×3, 8 bits, to B×3×S×S, values 0–1."""
    return images.permute(0, 3, 1, 2).float() / 255


def random_views(
    images: Tensor, rows: Tensor, views: int, seed: int, epoch: int, aug_plus: bool = False
) -> list[Tensor]:
    """`views` random views of each image. images: B×S×S×3, 8 bits; a view: B×3×S×S, values 0–1."""
    images = as_values(images)
    found = []
    for view in range(views):
        key = stream_seed("batch views", seed, epoch, view)
        found.append(apply(images, draw_parameters(key, rows, images.shape[-1], aug_plus)))
    return found
