"""The 4-conv-block backbone of Vinyals et al. 2016, the papers' small one (Tables 2 and 5)."""

from torch import Tensor, nn

WIDTH = 64


def conv_block(channels: int) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU, 2×2 max-pool."""
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class Conv4(nn.Module):
    """Images N×3×S×S to the flattened last feature map, N×(64·⌊S/16⌋²)."""

    def __init__(self, image_size: int):
        super().__init__()
        self.out_features = WIDTH * (image_size // 16) ** 2
        self.blocks = nn.Sequential(
            conv_block(3), conv_block(WIDTH), conv_block(WIDTH), conv_block(WIDTH)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).flatten(1)
