"""What every backbone does."""

import pytest
import torch
from torch import nn

from models import BACKBONES, LinearClassifier, build_encoder


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize("size", [32, 45, 84])
def test_any_size_from_32(arch, size):
    encoder = build_encoder(arch, embedding_dim=24).train()
    embeddings = encoder(torch.rand(2, 3, size, size))
    assert embeddings.shape == (2, 24) and embeddings.isfinite().all()
    embeddings.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("arch", BACKBONES)
def test_evaluation_is_the_same_each_time(arch):
    encoder, images = build_encoder(arch).eval(), torch.rand(3, 3, 32, 32)
    assert torch.equal(encoder(images), encoder(images))


@pytest.mark.parametrize("arch", BACKBONES)
def test_mixed_precision_is_for_layers_alone(arch):
    torch.manual_seed(0)
    encoder, images = build_encoder(arch), torch.rand(4, 3, 32, 32)
    seen = []
    encoder.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    encoder(images)
    encoder.amp = True
    embeddings = encoder(images)
    assert seen == [torch.float32, torch.bfloat16]
    assert embeddings.dtype == torch.float32
    embeddings.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters())


def test_mixed_precision_changes_little():
    torch.manual_seed(0)
    encoder, images = build_encoder("conv4").train(), torch.rand(8, 3, 64, 64)
    exact = encoder(images)
    encoder.amp = True
    apart = (encoder(images) - exact).norm() / exact.norm()
    assert 0 < apart < 0.03


def test_pooling_before_relu_is_the_same():
    """Blocks as the papers write them, ReLU first."""
    torch.manual_seed(0)
    encoder, images = build_encoder("conv4").train(), torch.rand(4, 3, 32, 32)
    found = encoder.backbone(images)
    x = images
    for conv, bn, pool, relu in encoder.backbone.blocks:
        x = pool(relu(bn(conv(x))))
    assert torch.equal(found, x.mean(dim=(2, 3)))


def test_mlp_head():
    head = build_encoder("conv4", 128, mlp=True).head
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head[0].weight.shape == (64, 64) and head[2].weight.shape == (128, 64)


def test_conv4_blocks():
    encoder = build_encoder("conv4")
    assert (
        sum(p.numel() for p in encoder.backbone.parameters()) == 3 * 64 * 9 + 3 * 64 * 64 * 9 + 512
    )
    assert encoder.backbone.blocks(torch.rand(1, 3, 84, 84)).shape == (1, 64, 5, 5)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="resnet12, conv4"):
        build_encoder("vgg")


def test_classifier_starts_as_the_paper_says():
    torch.manual_seed(0)
    linear = LinearClassifier(2000, 5).linear
    assert linear.bias.tolist() == [0] * 5
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert linear.weight.mean().item() == pytest.approx(0, abs=5e-4)
