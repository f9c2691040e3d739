"""What scripts/export.py writes loads by the lines it prints, and computes the same."""

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
    *lines, said = capsys.readouterr().out.strip().splitlines()
    assert len(lines) <= 3 and f"written: {out}" in said
    there = {"images": IMAGES.numpy()}
    exec("\n".join(lines), there)  # as a user pastes them
    found = there["outputs"] if end == ".onnx" else there["model"](IMAGES).detach().numpy()
    want = expected(load_checkpoint(chain.student), classifier).numpy()
    assert found.shape == want.shape == (3, 3 if classifier else 128)
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-5)


def test_refusals(chain, tmp_path, capsys, monkeypatch):
    def no(*argv):
        return refused(capsys, monkeypatch, "scripts/export", *argv)

    assert "one of .pt, .safetensors, .ts, .onnx" in no(chain.student, tmp_path / "it.bin")
    assert "--classifier: " in no(chain.pretrained, tmp_path / "it.pt", "--classifier")
    untrained = load_checkpoint(chain.student)
    untrained["args"]["p_label"] = False
    torch.save(untrained, tmp_path / "x.pth.tar")
    said = no(tmp_path / "x.pth.tar", tmp_path / "it.pt", "--classifier")
    assert "a student trained with --no-p_label, and has no trained classifier" in said
    (tmp_path / "it.pt").write_bytes(b"")
    assert "would be overwritten" in no(chain.student, tmp_path / "it.pt")
    assert "no checkpoint at" in no(tmp_path / "x", tmp_path / "y.pt")
