"""Networks of torchvision and timm as backbones; their weights."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import InputError
from models import build_encoder, default_weights, embedding_width, has_batchnorm, library
from networks import CONVOLUTIONAL, NETWORKS, TRANSFORMERS, library_network

EVERY_NETWORK = pytest.mark.parametrize("arch", NETWORKS)
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
FILE = Path("some/file.pth")


@pytest.fixture(autouse=True)
def installed(request):
    if "timm" in str(getattr(request.node, "callspec", "")):
        pytest.importorskip("timm")


def encoder(arch, size=64, dim=0):
    return build_encoder(arch, dim, image_size=size).eval()


@EVERY_NETWORK
def test_features_are_those_before_the_classifier(arch):
    """Those that the library's own classifier gets, of normalised pixels."""
    net, seen = library_network(arch, 64), []
    layers = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 5]
    layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    half = (0.5, 0.5, 0.5)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, std = map(torch.tensor, (half, half) if arch == "timm/test_vit" else imagenet)
    f_q = encoder(arch)
    f_q.backbone.load_weights(net.state_dict(), FILE)
    with torch.no_grad():
        net((IMAGES - mean[:, None, None]) / std[:, None, None])
        features = f_q(IMAGES)
    torch.testing.assert_close(features, seen[0].flatten(1))
    assert features.shape[1] == f_q.out_features == embedding_width(arch, 0, 64)
    assert f_q.state_dict()["backbone.normalize.mean"].flatten().tolist() == mean.tolist()


@EVERY_NETWORK
@pytest.mark.parametrize("size", [32, 96])
def test_other_sizes_and_training(arch, size):
    f_q = build_encoder(arch, 8, image_size=size).train()
    embeddings = f_q(torch.rand(2, 3, size, size))
    assert embeddings.shape == (2, 8)
    embeddings.square().sum().backward()
    assert all(p.grad is not None for p in f_q.parameters())
    f_q.amp = True
    assert f_q(torch.rand(2, 3, size, size)).dtype == torch.float32


@EVERY_NETWORK
def test_the_classifier_of_a_file_is_ignored(arch):
    """Of any number of classes, or missing; counters of BatchNorm may be missing, too."""
    whole = library_network(arch, 64, classes=7).state_dict()
    f_q = encoder(arch)
    f_q.backbone.load_weights(whole, FILE)
    net = f_q.backbone.net.state_dict()
    assert 0 < len(whole) - len(net) <= 2
    f_q.backbone.load_weights({k: v for k, v in net.items() if "num_batches" not in k}, FILE)
    assert torch.equal(f_q(IMAGES), f_q(IMAGES))


@EVERY_NETWORK
def test_files_that_do_not_match(arch):
    weights = library_network(arch, 64).state_dict()
    names = [name for name in weights if name.endswith("weight")]
    del weights[names[0]], weights[names[1]]
    weights |= {"other": torch.zeros(1), names[2]: torch.zeros(7)}
    with pytest.raises(InputError) as error:
        encoder(arch).backbone.load_weights(weights, FILE)
    message = str(error.value)
    assert "some/file.pth" in message and names[0] in message
    assert "2 missing" in message and "1 unexpected (other)" in message
    assert f"1 of another shape ({names[2]})" in message


@pytest.mark.parametrize("arch", TRANSFORMERS)
def test_position_embeddings_are_interpolated(arch):
    small, large = (library_network(arch, size).state_dict() for size in (64, 96))
    name = "encoder.pos_embedding" if "torchvision" in arch else "pos_embed"
    small[name] = torch.ones_like(small[name])
    f_q = encoder(arch, 96)
    f_q.backbone.load_weights(small, FILE)
    found = f_q.backbone.net.state_dict()[name]
    assert found.shape == large[name].shape != small[name].shape
    torch.testing.assert_close(found, torch.ones_like(found))


def test_old_names_of_densenet():
    net = build_encoder("torchvision/densenet121", 0, image_size=32).backbone
    weights = net.net.state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in weights.items()
    }
    assert old.keys() != weights.keys()
    net.load_weights(old, FILE)


@pytest.mark.parametrize(
    "arch, size, words",
    [
        ("torchvision/resnet17", 32, "torchvision has no such network; similar names: resnet1"),
        ("timm/resnet17", 32, "timm has no such network; similar names: resnet"),
        ("timm/test_vit.nothing", 32, "nothing"),
        ("torchvision/vit_b_16", 100, "--image-size 100"),
        ("torchvision/inception_v3", 64, "--image-size 64"),
        ("torchvision/fcn_resnet50", 64, "no such network"),  # segments
    ],
)
def test_networks_that_cannot_be_built(arch, size, words):
    with pytest.raises(InputError, match=words) as error:
        build_encoder(arch, 0, image_size=size)
    assert f"--arch {arch}" in str(error.value)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm/anything needs timm: pip install timm"):
        build_encoder("timm/anything")
    with pytest.raises(InputError, match="timm/anything needs timm: pip install timm"):
        default_weights("timm/anything")


@EVERY_NETWORK
def test_looking_at_a_network_takes_no_random_numbers(arch):
    library.out_features.cache_clear()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert has_batchnorm(arch, 32) == (arch in CONVOLUTIONAL)
    embedding_width(arch, None, 32)
    assert torch.rand(1) == expected


def test_networks_of_many_kinds():
    """One that reads values while it is built; auxiliary classifiers; a convolution as the last
    layer; a fixed size of input."""
    kinds = {"regnet_y_400mf": 440, "googlenet": 1024, "squeezenet1_1": 512, "maxvit_t": 512}
    found = {name: library.out_features(f"torchvision/{name}", 224) for name in kinds}
    assert found == kinds
    google = build_encoder("torchvision/googlenet", 0, image_size=32).train()
    assert google(torch.rand(2, 3, 32, 32)).shape == (2, 1024)


def test_a_classifier_with_batchnorm():
    """LeViT's, of which timm's configuration names only a part."""
    whole = pytest.importorskip("timm").create_model("levit_128s").state_dict()
    assert "head.bn.weight" in whole
    build_encoder("timm/levit_128s", 0).backbone.load_weights(whole, FILE)


class TestDefaultWeights:
    NAMES = {
        "torchvision/shufflenet_v2_x0_5": "shufflenetv2_x0.5-f707e7126e.pth",
        "timm/test_vit": "timm--test_vit.r160_in1k--model.safetensors",
    }

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        def fail(*args):
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)

    @pytest.mark.parametrize("arch", NAMES)
    def test_the_message_says_which_file_to_put_where(self, arch, tmp_path):
        pytest.importorskip("timm")
        path = tmp_path / "checkpoints" / self.NAMES[arch]
        with pytest.raises(InputError, match="no network") as error:
            default_weights(arch)
        assert "https://" in str(error.value) and f"save this file as {path}" in str(error.value)
        path.write_bytes(b"")
        assert default_weights(arch) == path

    def test_none_are_published(self):
        with pytest.raises(InputError, match="--weights default.*resnet12"):
            default_weights("resnet12")
        with pytest.raises(InputError, match="torchvision/resnet17: .*no such network"):
            default_weights("torchvision/resnet17")
        with pytest.raises(InputError, match="no weights of --arch timm/vit_base_patch32_plus_256"):
            default_weights("timm/vit_base_patch32_plus_256")
