"""SE-ResNet-50: number of parameters, and squeeze and excitation of a block."""

import torch
from torchvision.models import resnet50

from models.se_resnet50 import SEBottleneck, SEResNet50


def test_parameters():
    """Hu et al.'s 28,088,024 less the 2,049,000 of the layer for 1,000 classes."""
    assert sum(p.numel() for p in SEResNet50().parameters()) == 28_088_024 - 2_049_000


def test_a_block_by_hand():
    torch.manual_seed(0)
    block = SEBottleneck(64, 16).eval()
    x = torch.randn(2, 64, 8, 8)
    norm, squeeze = block.bn3
    out = block.conv3(torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))))
    out = norm(out)
    mean = out.mean(dim=(2, 3))  # squeeze
    hidden = torch.relu(mean @ squeeze.fc1.weight[:, :, 0, 0].T + squeeze.fc1.bias)
    scale = torch.sigmoid(hidden @ squeeze.fc2.weight[:, :, 0, 0].T + squeeze.fc2.bias)
    assert hidden.shape == (2, 4)  # a sixteenth
    torch.testing.assert_close(block(x), torch.relu(out * scale[:, :, None, None] + x))


def test_the_rest_is_resnet50():
    ours, plain = SEResNet50().state_dict(), resnet50().state_dict()
    same = {name for name in plain if not name.startswith("fc") and ".bn3." not in name}
    assert all(ours[f"net.{name}"].shape == plain[name].shape for name in same)
