"""The two views that MoCo contrasts, and the one that evaluation looks at."""

import torch
from PIL import Image, ImageFilter
from torch import nn
from torchvision import transforms

# Of MoCo's augmentation, a view of one image or, in batch_augment.py, of a batch.
CROP_SCALE, CROP_RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
JITTER, HUE = 0.4, 0.1
SIGMA = (0.1, 2.0)  # of the blur, in pixels
JITTER_P, GREY_P, BLUR_P, FLIP_P = 0.8, 0.2, 0.5, 0.5


class GaussianBlur(nn.Module):
    """Blur a PIL image with σ uniform in `sigma`, in pixels."""

    def __init__(self, sigma: tuple[float, float] = SIGMA):
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Image.Image) -> Image.Image:
        sigma = torch.empty(()).uniform_(*self.sigma).item()
        return image.filter(ImageFilter.GaussianBlur(sigma))


def random_view(image_size: int, aug_plus: bool = False) -> transforms.Compose:
    """Stage (a)'s augmentation of a PIL image, to a 3×S×S tensor with values 0–1.

    `aug_plus` is MoCo v2's, which adds hue and greyscale. Neither subtracts a mean, as in the
    released code.
    """
    hue = HUE if aug_plus else 0.0
    steps = [
        transforms.Resize((image_size, image_size)),
        transforms.RandomResizedCrop(image_size, CROP_SCALE, CROP_RATIO),
        transforms.RandomApply([transforms.ColorJitter(JITTER, JITTER, JITTER, hue)], JITTER_P),
    ]
    if aug_plus:
        steps.append(transforms.RandomGrayscale(GREY_P))
    steps += [
        transforms.RandomApply([GaussianBlur()], BLUR_P),
        transforms.RandomHorizontalFlip(FLIP_P),
        transforms.ToTensor(),
    ]
    return transforms.Compose(steps)


def plain_view(image_size: int) -> transforms.Compose:
    """The evaluation view: resized to S×S, nothing else; a 3×S×S tensor with values 0–1."""
    return transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])
