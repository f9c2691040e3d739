"""Files of scripts/export.py load with the printed lines and give the same outputs."""

import sys

import numpy as np
import pytest
import torch

from conftest import load_script, refused
from moco.checkpoint import load_checkpoint, query_encoder, student_classifier

export = load_script("scripts/export")
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def expected(checkpoint, classifier):
    embeddings = query_encoder(checkpoint)(IMAGES)
    return student_classifier(checkpoint)(embeddings) if classifier else embeddings


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("end", [".pt", ".safetensors", ".ts", ".onnx"])
def test_the_same_outputs(chain, tmp_path, capsys, end, classifier):
    needs = {".safetensors": ["safetensors"], ".onnx": ["onnx", "onnxscript", "onnxruntime"]}
    for name in needs.get(end, []):
        pytest.importorskip(name)
    out = tmp_path / f"it{end}"
    export.main([str(chain.student), str(out), *["--classifier"] * classifier])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert len(lines) <= 3 and f"written: {out}" in last
    namespace = {"images": IMAGES.numpy()}
    exec("\n".join(lines), namespace)  # as a user would paste them
    outputs = (
        namespace["outputs"] if end == ".onnx" else namespace["model"](IMAGES).detach().numpy()
    )
    if end == ".onnx":
        session = namespace["model"]
        assert session.get_outputs()[0].name == ("logits" if classifier else "embeddings")
        about = session.get_modelmeta().custom_metadata_map
        assert about["image_size"] == "32" and "bilinear" in about["resize"]
        assert about.get("classes") == ('["DF", "AKIEC", "VASC"]' if classifier else None)
    want = expected(load_checkpoint(chain.student), classifier).numpy()
    assert outputs.shape == want.shape == (3, 3 if classifier else 128)
    np.testing.assert_allclose(outputs, want, rtol=1e-3, atol=1e-5)


def test_refusals(chain, tmp_path, capsys, monkeypatch):
    def no(*argv):
        return refused(capsys, monkeypatch, "scripts/export", *argv)

    assert "one of .pt, .safetensors, .ts, .onnx" in no(chain.student, tmp_path / "it.bin")
    assert "--classifier: " in no(chain.pretrained, tmp_path / "it.pt", "--classifier")
    untrained = load_checkpoint(chain.student)
    untrained["args"]["p_label"] = False
    torch.save(untrained, tmp_path / "x.pth.tar")
    message = no(tmp_path / "x.pth.tar", tmp_path / "it.pt", "--classifier")
    assert "--classifier" in message and "no trained classifier" in message
    (tmp_path / "it.pt").write_bytes(b"")
    assert "--overwrite" in no(chain.student, tmp_path / "it.pt")
    assert str(tmp_path / "x") in no(tmp_path / "x", tmp_path / "y.pt")


@pytest.mark.parametrize(
    "end, package", [(".safetensors", "safetensors"), (".onnx", "onnx"), (".onnx", "onnxscript")]
)
def test_broken_packages(chain, tmp_path, capsys, monkeypatch, end, package):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    out = tmp_path / f"it{end}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise TypeError('of another version')")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        message = refused(capsys, patch, "scripts/export", chain.student, out)
    assert f"needs {package}, " in message and "TypeError: of another version" in message
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(capsys, monkeypatch, "scripts/export", chain.student, out)
    assert f"pip install {package}" in message and not out.exists()
