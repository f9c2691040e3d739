"""Encoders f_q: a backbone and the head that maps its features to the embedding."""

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .classifier import LinearClassifier
from .conv4 import Conv4, Conv4Released
from .library import LIBRARIES, LibraryBackbone, default_weights, out_features
from .resnet12 import ResNet12
from .se_resnet50 import SEResNet50

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "MIN_IMAGE_SIZE",
    "Encoder",
    "LinearClassifier",
    "build_encoder",
    "default_embedding_dim",
    "default_weights",
    "embedding_width",
    "has_batchnorm",
]

BACKBONES: dict[str, type[Backbone]] = {
    "resnet12": ResNet12,
    "conv4": Conv4,
    "conv4_released": Conv4Released,
    "se_resnet50": SEResNet50,
}
ARCHITECTURES = (*BACKBONES, *(f"{library}/NAME" for library in LIBRARIES))
MIN_IMAGE_SIZE = 32  # resnet12 and conv4 halve it four times, se_resnet50 five times


def default_embedding_dim(arch: str) -> int:
    """Return the embedding dimension of `arch` in the papers or the authors' code."""
    return BACKBONES.get(arch, Backbone).embedding_dim


def embedding_width(arch: str, embedding_dim: int | None, image_size: int) -> int:
    """Return the embedding's dimension: `embedding_dim`, or the features' if that is 0 or None."""
    if embedding_dim:
        return embedding_dim
    return BACKBONES[arch].out_features if arch in BACKBONES else out_features(arch, image_size)


def has_batchnorm(arch: str, image_size: int) -> bool:
    """Return whether a backbone has BatchNorm; raises as `build_encoder` does."""
    with torch.device("meta"):
        modules = build_encoder(arch, None, image_size=image_size).modules()
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)


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


def build_encoder(
    arch: str, embedding_dim: int | None = 128, mlp: bool = False, image_size: int = 224
) -> Encoder:
    """Build a randomly initialised encoder for images of at least `MIN_IMAGE_SIZE` pixels a side.

    `arch` is one of `BACKBONES`, or torchvision/NAME or timm/NAME, built for images of
    `image_size`; `mlp` adds MoCo v2's hidden layer before the embedding. If `embedding_dim` is 0 or
    None, the backbone's features are the embedding.
    Raises ValueError for an unknown `arch`, and as `LibraryBackbone` does.
    """
    backbone: Backbone
    if arch.startswith(tuple(f"{library}/" for library in LIBRARIES)):
        backbone = LibraryBackbone(arch, image_size)
    elif arch in BACKBONES:
        backbone = BACKBONES[arch]()
    else:
        raise ValueError(f"unknown backbone {arch!r}; must be one of {', '.join(ARCHITECTURES)}")
    width = backbone.out_features
    if not embedding_dim:
        return Encoder(backbone, nn.Identity(), width)
    head: nn.Module = nn.Linear(width, embedding_dim)
    if mlp:
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), head)
    head.apply(backbone.initialise)
    return Encoder(backbone, head, embedding_dim)
