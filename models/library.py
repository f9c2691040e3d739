"""Networks of torchvision and timm as backbones, by name, and their published weights."""

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from common.errors import InputError, reason
from common.packages import required

from .backbone import Backbone, load_matching

LIBRARIES = ("torchvision", "timm")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation


class Normalize(nn.Module):
    """Subtract the mean of each channel and divide by its standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class LibraryBackbone(Backbone):
    """Images N×3×S×S, values 0–1, to the features before the classifier of `arch`, such as
    torchvision/resnet18, N×`out_features`.

    The mean and standard deviation that the library's weights expect are its first layer. Raises
    InputError if the library or the network does not exist, or it does not take images of
    `image_size` pixels.
    """

    def __init__(self, arch: str, image_size: int):
        super().__init__()
        self.arch = arch
        self.net, self.classifier, normalization = _network(arch, image_size)
        self.normalize = Normalize(*normalization)
        self.out_features = out_features(arch, image_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalize(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """Raises InputError for networks without one, such as transformers, and for those that
        average over another number of channels than they have features."""
        maps = self.normalize(images)
        extract = getattr(self.net, "forward_features", None)  # timm's
        if extract := extract or getattr(self.net, "features", None):
            maps = extract(maps)
            if isinstance(self.net, torchvision.models.DenseNet):  # its last ReLU is no layer
                maps = maps.relu()
        elif hasattr(self.net, "avgpool"):  # its layers follow each other, as in ResNet
            if transform := getattr(self.net, "_transform_input", None):  # Inception's
                maps = transform(maps)
            for name, layer in self.net.named_children():
                if name == "avgpool":
                    break
                maps = layer(maps)
        if maps.ndim != 4 or maps.shape[1] != self.out_features:
            raise InputError(f"--arch {self.arch} has no map of its features")
        return maps

    def load_weights(self, weights: Mapping[str, Tensor], where: Path) -> None:
        """Load a state dict of the library's network, or of this backbone. A classifier in it is
        ignored, and position embeddings are interpolated to this image size."""
        if "normalize.mean" in weights:  # of this backbone
            names = [name for name in weights if name.startswith("net.")]
            weights = {name.removeprefix("net."): weights[name] for name in names}
        weights = {
            name: value for name, value in weights.items() if not name.startswith(self.classifier)
        }
        adapt = _torchvision_weights if self.arch.startswith("torchvision/") else _timm_weights
        load_matching(self.net, adapt(self.net, weights), where)


@functools.cache
def out_features(arch: str, image_size: int) -> int:
    """Return the number of features of a network; raises InputError as `LibraryBackbone` does."""
    images = torch.empty(2, 3, image_size, image_size, device="meta")  # shapes only
    with torch.device("meta"):
        net, _, _ = _network(arch, image_size)
    try:
        with torch.no_grad():
            features = net.eval()(images)
    except Exception as error:  # of any kind, such as a kernel larger than its input
        raise InputError(
            f"--arch {arch} does not take --image-size {image_size}: {reason(error)}"
        ) from error
    if features.ndim != 2:
        raise InputError(f"--arch {arch} is no classification network")
    return features.shape[1]


Network = tuple[nn.Module, tuple[str, ...], tuple[tuple[float, ...], tuple[float, ...]]]


def _network(arch: str, image_size: int) -> Network:
    """Return a network without its classifier, prefixes of the names of the classifier, and the
    mean and standard deviation of its inputs."""
    library, _, name = arch.partition("/")
    make = _torchvision_network if library == "torchvision" else _timm_network
    try:
        return make(name, image_size)
    except InputError:
        raise
    except NotImplementedError:  # its construction reads values, which meta tensors do not have
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            net, classifier, normalization = make(name, image_size)
        return net.to("meta"), classifier, normalization
    except Exception as error:  # such as an image size that the patches do not divide
        raise InputError(
            f"--arch {arch} cannot be built for --image-size {image_size}: {reason(error)}"
        ) from error


def _require_known(arch: str, names: list[str], known: bool) -> None:
    if not known:
        similar = difflib.get_close_matches(arch.partition("/")[2], names)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise InputError(f"--arch {arch}: {arch.partition('/')[0]} has no such network{hint}")


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)  # classification only


def _torchvision_network(name: str, image_size: int) -> Network:
    names = _torchvision_names()
    _require_known(f"torchvision/{name}", names, name in names)
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    elif name in ("googlenet", "inception_v3"):  # their weights expect transform_input
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    net = torchvision.models.get_model(name, weights=None, **options)
    layers = [
        name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    net.set_submodule(layers[-1], nn.Identity())
    return net, (f"{layers[-1]}.", "aux1.", "aux2.", "AuxLogits."), IMAGENET


def _torchvision_weights(net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of torchvision with today's names and position embeddings of this size."""
    old = r"(denselayer\d+\.(?:norm|conv))\.(\d\.)"  # DenseNet's published files: norm.1 for norm1
    weights = {re.sub(old, r"\1\2", name): value for name, value in weights.items()}
    positions = weights.get("encoder.pos_embedding")
    if isinstance(net, VisionTransformer) and positions is not None:
        if positions.shape != net.encoder.pos_embedding.shape:
            return dict(interpolate_embeddings(net.image_size, net.patch_size, dict(weights)))
    return weights


def _timm_network(name: str, image_size: int) -> Network:
    timm = required("timm", "timm", f"--arch timm/{name} needs")
    _require_known(f"timm/{name}", timm.list_models(), timm.is_model(name))
    about = timm.models.get_pretrained_cfg(name)
    sized = about is not None and about.fixed_input_size
    options = {"img_size": image_size} if sized else {}
    net = timm.create_model(name, pretrained=False, num_classes=0, **options)
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False, **options)
    classifier = whole.state_dict().keys() - net.state_dict().keys()
    normalization = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    return net, tuple(classifier), normalization


def _timm_weights(net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with timm's names and shapes for `net`, converted as timm does for it."""
    expected = {name: value.shape for name, value in net.state_dict().items()}
    if expected == {name: value.shape for name, value in weights.items()}:
        return weights
    module = sys.modules[type(net).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert:
        with contextlib.suppress(Exception):  # not of this network: its names will be counted
            return convert(dict(weights), net)
    return weights


def default_weights(arch: str) -> Path:
    """Return the file of the weights that the library publishes for `arch`, downloaded if needed.

    Raises InputError if there are none, or if they cannot be downloaded: it says which file to put
    where.
    """
    library, _, name = arch.partition("/")
    if library == "torchvision":
        _require_known(arch, names := _torchvision_names(), name in names)
        return _downloaded(torchvision.models.get_model_weights(name).DEFAULT.url)
    if library != "timm":
        raise InputError(f"--weights default: nobody publishes weights of --arch {arch}")
    timm = required("timm", "timm", f"--arch {arch} needs")
    _require_known(arch, timm.list_models(), timm.is_model(name))
    about = timm.models.get_pretrained_cfg(name)
    if about is not None and about.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache  # timm requires it

        filename = about.hf_hub_filename or "model.safetensors"
        cached = try_to_load_from_cache(about.hf_hub_id, filename)
        if isinstance(cached, str):
            return Path(cached)
        url = f"https://huggingface.co/{about.hf_hub_id}/resolve/main/{filename}"
        return _downloaded(url, f"{about.hf_hub_id.replace('/', '--')}--{filename}")
    if about is not None and about.url:
        return _downloaded(about.url)
    raise InputError(f"--weights default: timm has no weights of --arch {arch}")


def _downloaded(url: str, filename: str = "") -> Path:
    """Return the path of a file in torch's cache folder, downloaded if it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"  # where torchvision looks, too
    path = folder / (filename or url.rpartition("/")[2])
    if not path.exists():
        found = re.search(r"-([0-9a-f]{8,})\.", path.name)  # the beginning of its SHA-256
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), found[1] if found else None)
        except Exception as error:  # no network, another hash, disk full
            raise InputError(
                f"cannot download {url} ({reason(error)}); save this file as {path}, or pass it as "
                "--weights FILE"
            ) from error
    return path
