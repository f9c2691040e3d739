"""Small networks of torchvision and timm for tests, and files of random weights for them."""

from pathlib import Path

import pytest
import torch
import torchvision.models
from torchvision.models._api import register_model
from torchvision.models.vision_transformer import VisionTransformer


def vit_for_tests(*, weights=None, progress=True, **options) -> VisionTransformer:
    size = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 8}
    return VisionTransformer(**{"image_size": 224, **size, **options})


if "vit_for_tests" not in torchvision.models.list_models():
    vit_for_tests.__module__ = VisionTransformer.__module__  # listed as torchvision's
    register_model()(vit_for_tests)

CONVOLUTIONAL = ["torchvision/shufflenet_v2_x0_5", "timm/test_efficientnet"]
TRANSFORMERS = ["torchvision/vit_for_tests", "timm/test_vit"]
NETWORKS = CONVOLUTIONAL + TRANSFORMERS


def library_network(arch: str, image_size: int, classes: int = 5) -> torch.nn.Module:
    """Return the library's own network, with random weights and BatchNorm statistics."""
    library, _, name = arch.partition("/")
    sized = {"image_size": image_size} if library == "torchvision" else {"img_size": image_size}
    options = {"num_classes": classes, **(sized if arch in TRANSFORMERS else {})}
    torch.manual_seed(0)
    if library == "torchvision":
        net = torchvision.models.get_model(name, weights=None, **options)
    else:
        net = pytest.importorskip("timm").create_model(name, **options)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
            elif key.endswith("head.weight"):  # torchvision's ViT begins with zeros
                value.normal_()
    return net.eval()


def weights_file(arch: str, folder: Path, image_size: int = 32) -> Path:
    """Write random weights of a network; return the file."""
    path = folder / f"{arch.replace('/', '-')}.pth"
    torch.save(library_network(arch, image_size).state_dict(), path)
    return path
