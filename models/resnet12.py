"""ResNet-12 of few-shot learning (Lee et al. 2019; Tian et al. 2020), with DropBlock."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone

WIDTHS = (64, 160, 320, 640)
DROP_RATE = 0.1
BLOCK_SIZE = 5
ANNEALING_STEPS = 40_000


def drop_block(x: Tensor, drop_rate: Tensor | float, block_size: int = BLOCK_SIZE) -> Tensor:
    """Zero square blocks of each feature map in `x` (N×C×H×W), and rescale to keep the mean.

    DropBlock (Ghiasi et al. 2018), eq. (1): a block starts at each position where it fits with
    probability γ = rate / b² · H·W / ((H−b+1)(W−b+1)), so that about `drop_rate` of the values
    are dropped. The block is clipped to the size of the map.
    """
    height, width = x.shape[-2:]
    block = (min(block_size, height), min(block_size, width))
    starts = (height - block[0] + 1, width - block[1] + 1)
    gamma = drop_rate * height * width / (block[0] * block[1] * starts[0] * starts[1])
    seeds = (torch.rand(*x.shape[:2], *starts, device=x.device) < gamma).to(x.dtype)
    # Max-pooling the padded seeds extends each to a block below and to its right.
    padded = F.pad(seeds, (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1))
    keep = 1 - F.max_pool2d(padded, block, stride=1)
    return x * keep * (keep.numel() / keep.sum(dtype=torch.float32).clamp(min=1))


class DropBlock(nn.Module):
    """`drop_block` in training, its rate rising linearly to 0.1 over 40,000 forward passes."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.steps += 1
        return drop_block(x, DROP_RATE * (self.steps / ANNEALING_STEPS).clamp(max=1))


class ResidualBlock(nn.Module):
    """Three 3×3 convolutions with a 1×1 shortcut, then 2×2 max-pool and `drop`."""

    def __init__(self, channels: int, width: int, drop: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)).add_(self.shortcut(x))
        return self.drop(self.relu(self.pool(out)))  # pooling first, as in conv4


class ResNet12(Backbone):
    """Images N×3×S×S to globally averaged features, N×640, for any S ≥ 32."""

    out_features = WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ResidualBlock(3, WIDTHS[0], nn.Dropout(DROP_RATE)),
            ResidualBlock(WIDTHS[0], WIDTHS[1], nn.Dropout(DROP_RATE)),
            ResidualBlock(WIDTHS[1], WIDTHS[2], DropBlock()),
            ResidualBlock(WIDTHS[2], WIDTHS[3], DropBlock()),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def feature_map(self, images: Tensor) -> Tensor:
        return self.blocks(images)
