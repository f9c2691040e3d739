"""The 4-conv-block backbone of Vinyals et al. 2016, the papers' small one (Tables 2 and 5)."""

from torch import Tensor, nn

WIDTH = 64


def conv_block(channels: int) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU, 2×2 max-pool.

    The pooling comes first: the largest of four is the same one before and after ReLU, which then
    has a quarter of the work.
    """
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )


class Conv4(nn.Module):
    """Images N×3×S×S to globally averaged features, N×64, for any S from 32 up.

    Vinyals et al. flatten the last map, which is a single pixel in theirs. Here it is 14×14 at
    224 pixels: averaged, as in ResNet-12, it serves any size, and stage (d) trains at the papers'
    learning rate, at which a student with the flattened 4×4 map of 64-pixel images collapsed.
    """

    out_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            conv_block(3), conv_block(WIDTH), conv_block(WIDTH), conv_block(WIDTH)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean(dim=(2, 3))
