"""Batched version of `augment.random_view`, on the batch's device.

Each image has its own parameters, drawn from the same distributions. Pixels are float32, whereas
PIL rounds to 8 bits after each step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import repeat

import torch
from torch import Tensor

from common.seeding import stream_seed

from .augment import BLUR_P, CROP_RATIO, CROP_SCALE, FLIP_P, GREY_P, HUE, JITTER, JITTER_P, SIGMA

CROP_TRIES = 10
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue, as in PIL


def uniforms(seed: int, rows: Tensor, count: int) -> Tensor:
    """Return B×`count` random numbers, uniform in [0, 1).

    They depend only on `seed` and the image's row, not on the batch or the device: SplitMix64
    (Steele et al. 2014) as a counter-based generator.
    """

    def mix(z: Tensor) -> Tensor:
        z = (z ^ shift_right(z, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as signed
        z = (z ^ shift_right(z, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
        return z ^ shift_right(z, 31)

    def shift_right(z: Tensor, bits: int) -> Tensor:  # logical: fills with zeros
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    golden = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15
    streams = mix(mix((rows + 1) * golden) + seed)
    counters = torch.arange(1, count + 1, device=rows.device) * golden
    return shift_right(mix(streams[:, None] + counters), 40).float() / 2**24


@dataclass(frozen=True)
class Parameters:
    """Augmentation parameters of B images: tensors of B values, `order` B×4."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    order: Tensor  # permutation of brightness 0, contrast 1, saturation 2, hue 3
    brightness: Tensor  # factors; 1: unchanged
    contrast: Tensor
    saturation: Tensor
    sigma: Tensor  # of the blur, in pixels; 0: no blur
    flip: Tensor  # boolean
    hue: Tensor | None  # rotation as a fraction of the hue circle; None: no hue jitter
    grey: Tensor | None  # boolean; None: no greyscale

    def split(self, size: int) -> list["Parameters"]:
        """Return the parameters of each `size` images."""
        values = [getattr(self, field.name) for field in fields(self)]
        parts = (repeat(None) if value is None else value.split(size) for value in values)
        return [Parameters(*part) for part in zip(*parts)]


def draw_parameters(seed: int, rows: Tensor, size: int, aug_plus: bool = False) -> Parameters:
    """Draw the parameters of a random view of each image in `rows`, of `size`×`size` pixels.

    `seed` is derived from the run's seed, the epoch and the view.
    """
    u = iter(uniforms(seed, rows, 2 * CROP_TRIES + 15).unbind(dim=1))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * next(u)

    box = _crop(u, size)
    order = torch.stack([next(u) for _ in range(4)], dim=1).argsort(dim=1)
    jittered = next(u) < JITTER_P
    factors = [torch.where(jittered, uniform(1 - JITTER, 1 + JITTER), 1.0) for _ in range(3)]
    hue = torch.where(jittered, uniform(-HUE, HUE), 0.0)
    sigma = torch.where(next(u) < BLUR_P, uniform(*SIGMA), 0.0)
    flip, grey = next(u) < FLIP_P, next(u) < GREY_P
    return Parameters(
        *box, order, *factors, sigma, flip, *((hue, grey) if aug_plus else (None, None))
    )


def _crop(u: Iterator[Tensor], size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw top, left, height and width as torchvision's RandomResizedCrop does.

    The first of `CROP_TRIES` boxes that fits, else the whole image.
    """
    area = torch.stack([next(u) for _ in range(CROP_TRIES)], dim=1)
    ratio = torch.stack([next(u) for _ in range(CROP_TRIES)], dim=1)
    area = size**2 * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * area)
    low, high = map(math.log, CROP_RATIO)
    ratio = torch.exp(low + (high - low) * ratio)
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    no_fit = ~fits.any(dim=1)
    height = height.gather(1, first).squeeze(1).masked_fill(no_fit, size)
    width = width.gather(1, first).squeeze(1).masked_fill(no_fit, size)
    top = (next(u) * (size - height + 1)).floor()
    left = (next(u) * (size - width + 1)).floor()
    return top, left, height, width


def apply(images: Tensor, p: Parameters) -> Tensor:
    """Return the views with parameters `p` of images B×3×S×S, values 0–1; same shape and range."""
    size = images.shape[-1]
    rows = interpolation_matrix(p.top, p.height, size)
    columns = interpolation_matrix(p.left, p.width, size)
    images = apply_separable(images, rows, columns)
    images = jitter(images, p)
    if p.grey is not None:
        images = torch.where(p.grey[:, None, None, None], luminance(images), images)
    blur = gaussian_matrix(p.sigma, size)
    blur_and_flip = torch.where(p.flip[:, None, None], blur.flip(1), blur)
    return apply_separable(images, blur, blur_and_flip)


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply rows and columns of images B×3×S×S by B×S×S matrices (output × input pixels)."""
    return rows[:, None] @ images @ columns[:, None].mT


def interpolation_matrix(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return B×S×S matrices that crop `length` pixels at `start` and resize linearly to `size`."""
    pixels = torch.arange(size, device=start.device)
    step = (length / size)[:, None]
    source = start[:, None] + (pixels + 0.5) * step - 0.5  # B×S source coordinates
    source = torch.minimum(source.maximum(start[:, None]), (start + length - 1)[:, None])
    return (1 - (source[:, :, None] - pixels).abs()).clamp(min=0)


def gaussian_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return B×S×S matrices that blur by `sigma` pixels (0: no blur), with replicated edges."""
    padding = math.ceil(3 * SIGMA[1])
    pixels = torch.arange(size, device=sigma.device)
    padded = torch.arange(-padding, size + padding, device=sigma.device)
    distances = (padded - pixels[:, None]).square()
    variance = sigma.square().clamp(min=1e-3)[:, None, None]  # 1e-3: neighbours weigh exp(−500)
    weights = torch.exp(-distances / (2 * variance))
    weights = weights / weights.sum(dim=2, keepdim=True)
    inside = weights[:, :, padding : padding + size].clone()
    inside[:, :, 0] += weights[:, :, :padding].sum(dim=2)
    inside[:, :, -1] += weights[:, :, padding + size :].sum(dim=2)
    return inside


def luminance(images: Tensor) -> Tensor:
    """Return the luminance of images B×3×S×S, B×1×S×S."""
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def jitter(images: Tensor, p: Parameters) -> Tensor:
    """Change brightness, contrast, saturation and hue, in each image's own order.

    The first three blend the image with black, its mean luminance, or its luminance.
    """
    unused = torch.ones_like(p.brightness)
    factors = torch.stack([p.brightness, p.contrast, p.saturation, unused], dim=1)
    for operation in p.order.unbind(dim=1):
        grey = luminance(images)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        kind = operation[:, None, None, None]
        other = torch.where(kind == 2, grey, torch.where(kind == 1, mean, 0.0))
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        blended = (other + factor * (images - other)).clamp(0, 1)
        if p.hue is None:
            images = blended
        else:
            images = torch.where(kind == 3, rotate_hue(images, p.hue), blended)
    return images


def rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of images B×3×S×S by B fractions of the hue circle."""
    value, _ = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    red, green, blue = images.unbind(dim=1)
    safe = chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # in sixths of the hue circle
    hue = hue + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):  # value − chroma · max(0, min(k, 4 − k, 1)), k = (offset + hue) mod 6
        k = (offset + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 pixels B×S×S×3 to B×3×S×S, values 0–1."""
    return images.permute(0, 3, 1, 2).float() / 255


def draw_views(
    rows: Tensor, size: int, views: int, seed: int, epoch: int, aug_plus: bool = False
) -> list[Parameters]:
    """Return the parameters of each of `views` random views of the images in `rows`; see
    `draw_parameters`."""
    seeds = (stream_seed("batch views", seed, epoch, view) for view in range(views))
    return [draw_parameters(view_seed, rows, size, aug_plus) for view_seed in seeds]
