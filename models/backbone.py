"""Base class of the backbones."""

from typing import ClassVar

from torch import nn


class Backbone(nn.Module):
    """Images N×3×S×S to features N×`out_features`, for any S ≥ 32."""

    out_features: ClassVar[int]
    embedding_dim: ClassVar[int] = 128  # of the linear head that follows in the papers

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Initialise a layer of the head; by default, as PyTorch does."""
