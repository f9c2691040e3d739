"""Random views of an image for MoCo, and the evaluation view."""

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

# MoCo's augmentation, shared with batch_augment.py.
CROP_SCALE, CROP_RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
JITTER, HUE = 0.4, 0.1
SIGMA = (0.1, 2.0)  # of the Gaussian blur, in pixels
JITTER_P, GREY_P, BLUR_P, FLIP_P = 0.8, 0.2, 0.5, 0.5


def gaussian_blur(image: Image.Image, sigma: tuple[float, float] = SIGMA) -> Image.Image:
    """Blur a PIL image with σ drawn uniformly from `sigma`, in pixels."""
    return image.filter(ImageFilter.GaussianBlur(torch.empty(()).uniform_(*sigma).item()))


def random_view(image_size: int, aug_plus: bool = False) -> transforms.Compose:
    """Return MoCo's random augmentation: a transform of a PIL image to 3×S×S, values 0–1.

    `aug_plus` adds hue and greyscale, as in MoCo v2. The mean is not subtracted, as in the released
    code.
    """
    hue = HUE if aug_plus else 0.0
    jitter = transforms.ColorJitter(JITTER, JITTER, JITTER, hue)
    return transforms.Compose([
        transforms.Resize((image_size, image_size)),
        transforms.RandomResizedCrop(image_size, CROP_SCALE, CROP_RATIO),
        transforms.RandomApply([jitter], JITTER_P),
        *([transforms.RandomGrayscale(GREY_P)] if aug_plus else []),
        transforms.RandomApply([gaussian_blur], BLUR_P),
        transforms.RandomHorizontalFlip(FLIP_P),
        transforms.ToTensor(),
    ])  # fmt: skip


def plain_view(image_size: int) -> transforms.Compose:
    """Return the evaluation transform: a PIL image resized to 3×S×S, values 0–1."""
    return transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])
