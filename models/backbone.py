"""Base class of the backbones."""

from typing import ClassVar

from torch import Tensor, nn


class Backbone(nn.Module):
    """Images N×3×S×S to features N×`out_features`, for any S ≥ 32."""

    out_features: ClassVar[int]
    embedding_dim: ClassVar[int] = 128  # of the linear head that follows in the papers

    def feature_map(self, images: Tensor) -> Tensor:
        """Map images, N×3×S×S, to the last map before averaging, N×`out_features`×h×w."""
        raise NotImplementedError(f"{type(self).__name__} has no feature map")

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_map(images).mean(dim=(2, 3))

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Initialise a layer of the head; by default, as PyTorch does."""
