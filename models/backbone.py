"""What every backbone is and says of itself."""

from typing import ClassVar

from torch import nn


class Backbone(nn.Module):
    """Images N×3×S×S to features N×`out_features`, for any S from 32 up."""

    out_features: ClassVar[int]
    embedding_dim: ClassVar[int] = 128  # of the embedding that the papers put behind it

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Draw the weights of a layer of the head; here: leave them as PyTorch draws them."""
