"""Encoders f_q: a backbone and the head that maps its features to the embedding."""

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .classifier import LinearClassifier
from .conv4 import Conv4, Conv4Released
from .resnet12 import ResNet12
from .se_resnet50 import SEResNet50

__all__ = [
    "BACKBONES",
    "MIN_IMAGE_SIZE",
    "Encoder",
    "LinearClassifier",
    "build_encoder",
    "default_embedding_dim",
]

BACKBONES: dict[str, type[Backbone]] = {
    "resnet12": ResNet12,
    "conv4": Conv4,
    "conv4_released": Conv4Released,
    "se_resnet50": SEResNet50,
}
MIN_IMAGE_SIZE = 32  # resnet12 and conv4 halve it four times, se_resnet50 five times


def default_embedding_dim(arch: str) -> int:
    """Return the embedding dimension of `arch` in the papers or the authors' code."""
    return BACKBONES[arch].embedding_dim


class Encoder(nn.Module):
    """f_q: images (N×3×S×S, values 0–1) to embeddings (N×`out_features`, not normalised).

    With `amp`, layers compute in bfloat16 where autocast allows; weights and embeddings stay
    float32.
    """

    amp = False

    def __init__(self, backbone: Backbone, head: nn.Module, out_features: int):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.out_features = out_features

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            embeddings = self.head(self.backbone(images))
        return embeddings.float()

    def feature_map(self, images: Tensor) -> Tensor:
        """Map images to the backbone's last map before averaging, N×C×h×w."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            maps = self.backbone.feature_map(images)
        return maps.float()


def build_encoder(arch: str, embedding_dim: int | None = 128, mlp: bool = False) -> Encoder:
    """Build a randomly initialised encoder for images of at least `MIN_IMAGE_SIZE` pixels a side.

    `arch` is one of `BACKBONES`; `mlp` adds MoCo v2's hidden layer before the embedding. If
    `embedding_dim` is None, the backbone's features are the embedding.
    Raises ValueError for an unknown `arch`.
    """
    if arch not in BACKBONES:
        raise ValueError(f"unknown backbone {arch!r}; must be one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[arch]()
    width = backbone.out_features
    if embedding_dim is None:
        return Encoder(backbone, nn.Identity(), width)
    head: nn.Module = nn.Linear(width, embedding_dim)
    if mlp:
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), head)
    head.apply(backbone.initialise)
    return Encoder(backbone, head, embedding_dim)
