"""--weights: files, runs, and errors."""

import hashlib

import pytest
import torch
from torch import nn

from common.errors import InputError
from moco.checkpoint import backbone_weights, load_checkpoint
from moco.weights import initial_weights, load_initial, require_teachers_start
from models import build_encoder
from networks import library_network
from trainer.checkpoint import CHECKPOINT, PREVIOUS

ARCH = "torchvision/vit_for_tests"


@pytest.fixture(scope="module")
def weights():
    return library_network(ARCH, 32).state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["pth", "state_dict", "model", "parallel", "safetensors"])
def test_files(kind, weights, tmp_path):
    path = tmp_path / ("it.safetensors" if kind == "safetensors" else "it.pth")
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    else:
        parallel = {f"module.{name}": value for name, value in weights.items()}
        contents = {"pth": weights, "parallel": parallel}.get(kind, {kind: weights, "epoch": 3})
        torch.save(contents, path)
    found = initial_weights(str(path), ARCH)
    assert equal(found.weights, weights) and found.where == path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.record == {"source": str(path), "sha256": digest}


def test_both_encoders_get_them(weights, tmp_path):
    torch.save(weights, tmp_path / "it.pth")
    pair = {
        name: build_encoder(ARCH, 4, image_size=32) for name in ("query_encoder", "key_encoder")
    }
    load_initial(nn.ModuleDict(pair), initial_weights(str(tmp_path / "it.pth"), ARCH))
    for encoder in pair.values():
        found = encoder.backbone.net.state_dict()
        assert len(found) > 10 and all(torch.equal(found[name], weights[name]) for name in found)


def test_a_run(chain, tmp_path):
    """Of any backbone, from its folder or file."""
    found = initial_weights(str(chain.pretrained), "conv4")
    backbone = build_encoder("conv4").backbone
    backbone.load_weights(found.weights, found.where)
    assert equal(backbone.state_dict(), backbone_weights(load_checkpoint(chain.pretrained)))
    file = chain.pretrained / CHECKPOINT
    assert equal(found.weights, initial_weights(str(file), "conv4").weights)
    assert found.record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="of --arch conv4, not resnet12"):
        initial_weights(str(chain.pretrained), "resnet12")


def test_a_run_whose_latest_checkpoint_is_damaged(chain, tmp_path, capsys):
    """The previous one is taken, with a note, and its digest recorded."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (CHECKPOINT, PREVIOUS):
        (run / name).write_bytes((chain.pretrained / CHECKPOINT).read_bytes())
    (run / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes()[:-50])
    found = initial_weights(str(run), "conv4")
    assert equal(found.weights, backbone_weights(load_checkpoint(chain.pretrained)))
    digest = hashlib.sha256((run / PREVIOUS).read_bytes()).hexdigest()
    assert found.record == {"source": str(run), "sha256": digest}
    assert "falling back to the previous checkpoint" in capsys.readouterr().out


def test_none():
    assert initial_weights("none", "resnet12") is None


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "does not exist"),
        ([1], "is not a state dict"),
        ({"a": 3}, "is not a state dict"),
        ({}, "is not a state dict"),
        ({"a": torch.tensor([1.0, torch.nan])}, "NaN or Inf in a"),
    ],
)
def test_invalid_files(contents, message, tmp_path):
    path = tmp_path / "it.pth"
    if contents is not None:
        torch.save(contents, path)
    with pytest.raises(InputError, match=message) as error:
        initial_weights(str(path), ARCH)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["it.pth", "it.safetensors"])
def test_damaged_files(name, tmp_path):
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(InputError, match=str(tmp_path / name)):
        initial_weights(str(tmp_path / name), ARCH)


def test_a_student_needs_its_teachers_weights(tmp_path):
    one, two = ({"source": name, "sha256": 64 * name} for name in "ab")
    require_teachers_start(one, one | {"source": "moved"}, tmp_path)
    require_teachers_start(None, one, tmp_path)  # a fresh student
    with pytest.raises(InputError, match=f"aaaaaaaa.* {tmp_path} .*bbbbbbbb"):
        require_teachers_start(one, two, tmp_path)
