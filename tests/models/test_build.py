"""All backbones, and the classifier."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import BACKBONES, LinearClassifier, build_encoder, default_embedding_dim


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize("size", [32, 45, 84])
def test_any_size_from_32(arch, size):
    encoder = build_encoder(arch, embedding_dim=24).train()
    embeddings = encoder(torch.rand(2, 3, size, size))
    assert embeddings.shape == (2, 24) and embeddings.isfinite().all()
    embeddings.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("arch", BACKBONES)
def test_evaluation_is_deterministic(arch):
    encoder, images = build_encoder(arch).eval(), torch.rand(3, 3, 32, 32)
    assert torch.equal(encoder(images), encoder(images))


@pytest.mark.parametrize("arch", BACKBONES)
def test_mixed_precision_keeps_float32_weights_and_embeddings(arch):
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
    difference = (encoder(images) - exact).norm() / exact.norm()
    assert 0 < difference < 0.03


def test_pooling_before_relu_is_the_same():
    """Against blocks with ReLU first, as in the papers."""
    torch.manual_seed(0)
    encoder, images = build_encoder("conv4").train(), torch.rand(4, 3, 32, 32)
    features = encoder.backbone(images)
    x = images
    for conv, bn, pool, relu in encoder.backbone.blocks:
        x = pool(relu(bn(conv(x))))
    assert torch.equal(features, x.mean(dim=(2, 3)))


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


def test_classifier_initialisation():
    torch.manual_seed(0)
    linear = LinearClassifier(2000, 5).linear
    assert linear.bias.tolist() == [0] * 5
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert linear.weight.mean().item() == pytest.approx(0, abs=5e-4)


def test_conv4_released_against_the_authors_model():
    """Blocks of convolution, ReLU, BatchNorm and pooling, which reduce 224 pixels to one."""
    torch.manual_seed(0)
    encoder = build_encoder("conv4_released", default_embedding_dim("conv4_released")).eval()
    weights = encoder.state_dict()
    x = images = torch.rand(2, 3, 224, 224)
    for block in (f"backbone.blocks.{n}" for n in range(4)):
        w, b = weights[f"{block}.0.weight"], weights[f"{block}.0.bias"]
        x = F.relu(F.conv2d(x, w, b, stride=2, padding=2))
        norm = [weights[f"{block}.2.{kind}"] for kind in ("running_mean", "running_var")]
        x = F.max_pool2d(F.batch_norm(x, *norm), 2)
    assert x.shape == (2, 64, 1, 1)
    expected = F.linear(x.flatten(1), weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(encoder(images), expected)
    assert encoder.out_features == 64
    assert sum(p.numel() for p in encoder.parameters()) == 3 * 576 + 3 * 36864 + 4 * 192 + 4160
    # He et al.'s normal weights, in the linear layer too; biases zero.
    assert weights["backbone.blocks.1.0.weight"].std().item() == pytest.approx(0.0589, rel=0.02)
    assert weights["head.weight"].std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert not weights["head.bias"].any() and not weights["backbone.blocks.0.0.bias"].any()


def test_default_embedding_dim():
    names = ("resnet12", "conv4", "conv4_released", "se_resnet50")
    assert [default_embedding_dim(name) for name in names] == [128, 128, 64, 128]
