"""SE-ResNet-50 (Hu et al. 2018), the backbone of Table 10, from torchvision's modules."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import SqueezeExcitation

from .backbone import Backbone

REDUCTION = 16


class SEBottleneck(Bottleneck):
    """ResNet's bottleneck with channels reweighted before the shortcut is added."""

    bn3: nn.Module

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        channels = self.conv3.out_channels
        self.bn3 = nn.Sequential(self.bn3, SqueezeExcitation(channels, channels // REDUCTION))


class SEResNet50(Backbone):
    """Images N×3×S×S to globally averaged features, N×2048, for any S ≥ 32."""

    out_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet(SEBottleneck, [3, 4, 6, 3])
        self.net.fc = nn.Identity()

    def feature_map(self, images: Tensor) -> Tensor:
        for layer in list(self.net.children())[:-2]:  # without averaging and fc
            images = layer(images)
        return images

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
