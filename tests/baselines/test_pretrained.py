"""Pretrained encoders: frozen, continued by contrast, and the students of both."""

import json
import shutil

import numpy as np
import pytest
import torch

from baselines import pretrained
from conftest import call, load_script, refused, states_equal
from datasets.pseudo import load_pseudo_labels
from moco.checkpoint import (
    backbone_weights,
    load_checkpoint,
    query_encoder,
    student_classifier,
)
from models import build_encoder
from networks import NETWORKS, TRANSFORMERS, weights_file

SMALL = "-b 8 --moco-k 32 --bn-groups 2 -j 0".split()


@pytest.fixture(scope="module", params=NETWORKS)
def frozen(request, data, tmp_path_factory):
    """A frozen encoder, its pseudo labels and scores; the file of its weights is gone."""
    arch, root = request.param, tmp_path_factory.mktemp("frozen")
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    path = weights_file(arch, root)
    flags = ["--arch", arch, "--image-size", 32, "--weights", path]
    call("baselines.pretrained", *flags, "--model-path", root / "frozen")
    call("main_moco", data, *flags, "--model-path", root / "a", *SMALL, "--epochs", 0)
    call("main_moco", data, *flags, "--model-path", root / "half", *SMALL, "--epochs", 1)
    shutil.move(path, root / "moved.pth")
    labelling = ["--datadir", data, "--k-shot", 2, "-j", 0]
    for run in ("frozen", "a"):
        call(
            "generate_pseudo", *labelling, "--resume", root / run,
            "--savedir", root / f"labels_{run}",
        )  # fmt: skip
    return root, arch, flags


def student(data, labels, folder, *flags):
    call(
        "main_distill", data, "--savedir", labels, "--model-path", folder, "-b", 8, "-j", 0,
        "--bn-groups", 2, "--moco-k", 32, *flags,
    )  # fmt: skip
    return load_checkpoint(folder)


def test_frozen(frozen, data):
    """The checkpoint is all that scores and pseudo labels need."""
    root, arch, _ = frozen
    checkpoint = load_checkpoint(root / "frozen")
    assert (checkpoint["stage"], checkpoint["args"]["arch"]) == ("pretrained", arch)
    assert len(checkpoint["weights"]["sha256"]) == 64
    assert checkpoint["weights"]["source"].endswith(".pth")
    call("test", data, "--resume", root / "frozen", "--k-shot", 2, "-j", 0)
    scores = json.loads((root / "frozen" / "test_lr_3way_2shot_seed0.json").read_text())
    assert scores["args"]["augnum"] == 0
    f_q = query_encoder(checkpoint)
    expected = build_encoder(arch, 0, image_size=32).eval()
    weights = torch.load(root / "moved.pth", weights_only=True)
    expected.backbone.load_weights(weights, root)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(f_q(images), expected(images))
    _, labels = load_pseudo_labels(root / "labels_frozen")
    assert labels.embeddings.shape[1] == f_q.out_features


def test_another_file_under_the_same_name(data, tmp_path, capsys, monkeypatch):
    """It is not "already done"; without the file it is."""
    path = weights_file(NETWORKS[0], tmp_path)
    argv = ["baselines.pretrained", "--arch", NETWORKS[0], "--image-size", 32, "--weights", path,
            "--model-path", tmp_path / "frozen"]  # fmt: skip
    call(*argv)
    weights = torch.load(path, weights_only=True)
    torch.save({name: 2 * value for name, value in weights.items()}, path)
    assert "would be overwritten" in refused(capsys, monkeypatch, *argv)
    path.unlink()
    call(*argv)
    assert "already done" in capsys.readouterr().out


def test_students_of_a_frozen_teacher(frozen, data, tmp_path):
    """They begin with its weights, and with the features as the embedding."""
    root, arch, _ = frozen
    teacher, labels = load_checkpoint(root / "frozen"), root / "labels_frozen"
    begun = student(data, labels, tmp_path / "d", "--epochs", 0)
    assert states_equal(backbone_weights(begun), backbone_weights(teacher))
    assert begun["weights"] == teacher["weights"]
    args = begun["args"]
    assert (args["student_weights"], args["moco_dim"], args["lr"]) == ("teacher-init", 0, 1e-4)
    assert args["student_classifier"] == "teacher"
    _, found = load_pseudo_labels(labels)
    f_c = student_classifier(begun)
    p = f_c(torch.from_numpy(found.embeddings)).softmax(dim=1)  # untrained, it is its teacher
    np.testing.assert_allclose(p.detach(), found.probabilities, atol=1e-5)
    other = student(data, labels, tmp_path / "e", "--epochs", 0, "--moco-dim", 16)
    assert other["args"]["student_classifier"] == "fresh"
    assert states_equal(backbone_weights(other), backbone_weights(teacher))
    assert other["state_dict"]["queue"].shape == (32, 16)
    trained = student(data, labels, tmp_path / "t", "--epochs", 1, "--moco-dim", 16)
    assert not states_equal(backbone_weights(trained), backbone_weights(teacher))
    small = ["-b", 8, "-j", 0, "--moco-k", 32, "--epochs", 1, "--model-path", tmp_path / "k"]
    call("main_distill", data, "--savedir", labels, *small)
    kept = load_checkpoint(tmp_path / "k")
    assert kept["args"]["bn_groups"] == 0  # the default: BatchNorm keeps the file's statistics
    for name, value in backbone_weights(teacher).items():
        if "running" in name:
            assert torch.equal(value, backbone_weights(kept)[name]), name
    fresh = student(data, labels, tmp_path / "f", "--epochs", 0, "--student-weights", "fresh")
    assert fresh["args"]["student_classifier"] == "fresh"
    assert fresh["weights"] is None and fresh["args"]["weights"] == "none"
    assert (fresh["args"]["lr"], fresh["args"]["moco_dim"]) == (0.03, 0)
    found = zip(backbone_weights(fresh).values(), backbone_weights(teacher).values())
    assert sum(not torch.equal(a, b) for a, b in found) > 5
    call("test", data, "--resume", tmp_path / "t", "--load-cla", "-j", 0)
    scores = json.loads((tmp_path / "t" / "test_direct_3way_2shot_seed0.json").read_text())
    assert all(scores["beside"].values()) and len(scores["beside"]) == 3  # with its teacher


def test_stage_a_from_weights(frozen, data, tmp_path, capsys, monkeypatch):
    """It begins with the file's weights; resumed without the file, it ends bit for bit as in one
    go. Its student needs the file, wherever it is."""
    root, _, flags = frozen
    frozen_weights, a = backbone_weights(load_checkpoint(root / "frozen")), root / "a"
    begun = load_checkpoint(a)
    assert states_equal(backbone_weights(begun), frozen_weights)
    assert begun["args"]["lr"] == 1e-4
    assert begun["args"]["schedule"] == load_checkpoint(root / "half")["args"]["schedule"] == []
    key_encoder = {
        name.removeprefix("key_encoder.backbone."): value
        for name, value in begun["state_dict"].items() if name.startswith("key_encoder.backbone.")
    }  # fmt: skip
    assert states_equal(key_encoder, frozen_weights)
    resumed = ["main_moco", data, *flags, *SMALL, "--epochs", 2, "--model-path"]
    call(*resumed, root / "half")
    shutil.copy(root / "moved.pth", flags[-1])
    call(*resumed, tmp_path / "whole")
    flags[-1].unlink()
    whole, half = (load_checkpoint(folder) for folder in (tmp_path / "whole", root / "half"))
    assert states_equal(whole["state_dict"], half["state_dict"])
    assert whole["weights"] == half["weights"] == begun["weights"]

    labels = ["--savedir", root / "labels_a", "--model-path", tmp_path / "d"]
    error = refused(capsys, monkeypatch, "main_distill", data, *labels, "-b", 8, "-j", 0)
    assert f"--weights {flags[-1]} does not exist" in error
    moved = ["--weights", root / "moved.pth"]
    found = student(data, root / "labels_a", tmp_path / "d", "--epochs", 0, *moved)
    assert states_equal(backbone_weights(found), frozen_weights)
    assert found["args"]["moco_dim"] == 128  # the teacher's
    other = ["--weights", root / "frozen"]  # the same weights, from another run
    student(data, root / "labels_a", tmp_path / "e", "--epochs", 0, *other)
    wrong = root / "wrong.pth"
    contents = torch.load(root / "moved.pth", weights_only=True)
    torch.save({name: value + 1 for name, value in contents.items()}, wrong)
    again = ["--savedir", root / "labels_a", "--model-path", tmp_path / "w", "-b", 8, "-j", 0]
    error = refused(capsys, monkeypatch, "main_distill", data, *again, "--weights", wrong)
    assert "are not those that the teacher" in error


def test_a_student_that_continues_its_teacher(data, tmp_path, capsys, monkeypatch):
    """It begins with stage (a)'s encoder and classifier; not if that was trained on since."""
    arch = "torchvision/vit_for_tests"
    flags = ["--arch", arch, "--image-size", 32, "--weights", weights_file(arch, tmp_path)]
    stage_a = ["main_moco", data, *flags, *SMALL, "--model-path", tmp_path / "a", "--moco-dim", 0]
    labels = tmp_path / "labels"
    call(*stage_a, "--epochs", 1)
    call(
        "generate_pseudo", "--datadir", data, "--resume", tmp_path / "a", "--savedir", labels,
        "--k-shot", 2, "-j", 0,
    )  # fmt: skip
    begun = student(data, labels, tmp_path / "d", "--student-weights", "teacher", "--epochs", 0)
    teacher = load_checkpoint(tmp_path / "a")
    assert states_equal(backbone_weights(begun), backbone_weights(teacher))
    p = student_classifier(begun)(torch.from_numpy(load_pseudo_labels(labels)[1].embeddings))
    expected = load_pseudo_labels(labels)[1].probabilities
    np.testing.assert_allclose(p.softmax(dim=1).detach(), expected, atol=1e-5)
    other = student(data, labels, tmp_path / "e", "--epochs", 0)
    assert other["args"]["student_classifier"] == "fresh"
    assert not states_equal(backbone_weights(other), backbone_weights(teacher))
    command = ["main_distill", data, "--savedir", labels, "--model-path", tmp_path / "f",
               "--student-weights", "teacher", "-j", 0]  # fmt: skip
    error = refused(capsys, monkeypatch, *command, "--moco-dim", 8)
    assert "must be the features of its backbone" in error
    error = refused(capsys, monkeypatch, *command, "--weights", tmp_path / "e")
    assert f"--weights {tmp_path / 'e'} conflicts with --student-weights teacher" in error
    call(*stage_a, "--epochs", 2)
    error = refused(capsys, monkeypatch, *command, "-b", 8, "--moco-k", 32)
    assert "has been trained on or replaced" in error
    # Resumed, it needs its teacher no more.
    student(data, labels, tmp_path / "d", "--student-weights", "teacher", "--epochs", 1)


def test_a_resumed_student_needs_no_file(data, tmp_path):
    arch = "torchvision/vit_for_tests"
    path, frozen, labels = weights_file(arch, tmp_path), tmp_path / "frozen", tmp_path / "labels"
    flags = ["--arch", arch, "--image-size", 32, "--weights", path]
    call("baselines.pretrained", *flags, "--model-path", frozen)
    call(
        "generate_pseudo", "--datadir", data, "--resume", frozen, "--savedir", labels,
        "--k-shot", 2, "-j", 0,
    )  # fmt: skip
    whole = student(data, labels, tmp_path / "whole", "--epochs", 2)
    student(data, labels, tmp_path / "half", "--epochs", 1)
    shutil.rmtree(frozen)
    half = student(data, labels, tmp_path / "half", "--epochs", 2)
    assert states_equal(whole["state_dict"], half["state_dict"])
    assert half["weights"] == whole["weights"]


@pytest.mark.parametrize("module", ["srl", "simclr", "scratch"])
def test_the_baselines_from_weights(module, data, tmp_path):
    arch = "torchvision/vit_for_tests"
    path = weights_file(arch, tmp_path)
    flags = ["--arch", arch, "--image-size", 32, "--weights", path, "-b", 6, "-j", 0]
    call(f"baselines.{module}", data, *flags, "--model-path", tmp_path / "it", "--epochs", 0)
    found = load_checkpoint(tmp_path / "it")
    weights = torch.load(path, weights_only=True)
    backbone = backbone_weights(found)
    name = "conv_proj.weight"
    assert torch.equal(backbone[f"net.{name}"], weights[name])
    assert found["weights"]["source"] == str(path)


def test_layernorm_needs_no_groups(data, tmp_path):
    """Batches that BatchNorm's four groups would not divide."""
    flags = ["--arch", TRANSFORMERS[0], "--image-size", 32, "-b", 5, "--moco-k", 10, "-j", 0]
    call("main_moco", data, *flags, "--model-path", tmp_path, "--epochs", 1)
    assert load_checkpoint(tmp_path)["epoch"] == 1


def test_regression_needs_the_teachers_dimension(frozen, data, tmp_path):
    root, arch, _ = frozen
    flags = ["--epochs", 1, "--losses", "con+reg"]
    student(data, root / "labels_frozen", tmp_path / "d", *flags)
    with pytest.raises(ValueError, match="con.reg: .*8 dimensions, the teacher's"):
        student(data, root / "labels_frozen", tmp_path / "e", *flags, "--moco-dim", 8)


def test_refusals(chain, data, tmp_path, capsys, monkeypatch):
    def no(*argv):
        return refused(capsys, monkeypatch, *argv)

    run = ["--model-path", tmp_path / "x"]
    assert "nobody publishes weights of --arch resnet12" in no("baselines.pretrained", *run)
    flags = ["main_distill", data, "--savedir", chain.labels, *run]
    error = no(*flags, "--student-weights", "teacher-init")
    assert "--student-weights teacher-init: the teacher began with random weights" in error
    assert "a fresh student begins with random weights" in no(*flags, "--weights", "default")
    error = no(*flags, "--student-classifier", "teacher")
    assert "the student does not begin with its teacher's very encoder" in error
    flags = ["main_moco", data, *run, "-j", 0, "--bn-groups", 0]
    assert "--bn-groups 0 keeps BatchNorm's statistics: it takes --weights" in no(*flags)
    path = weights_file("torchvision/vit_for_tests", tmp_path)
    wrong = ["--arch", "torchvision/vit_b_16", "--image-size", 32, "--weights", path]
    for command in (["baselines.pretrained"], ["main_moco", data, "-j", 0]):
        error = no(*command, *wrong, *run)
        assert "does not match the network's" in error and "missing" in error
    assert not (tmp_path / "x").exists()
    error = no("main_moco", data, "--arch", "torchvision/resnet17", *run)
    assert "similar names: resnet18" in error


def test_own_classes_are_named_once(smears, tmp_path, capsys, monkeypatch):
    classes = ["--base-classes", "light_dysplastic", "--rare-classes", "carcinoma_in_situ",
               "normal_columnar"]  # fmt: skip
    flags = ["--weights", "none", "--arch", "conv4", "--image-size", 32, *classes]
    run = ["--model-path", tmp_path]
    call("baselines.pretrained", smears, *flags, *run)
    found = load_checkpoint(tmp_path)
    assert found["base"]["counts"] == {}  # no image has been used
    assert found["data"]["dataset"] == "papsmear"
    call("test", smears, "--resume", tmp_path, "--k-shot", 2, "-j", 0)
    scores = json.loads((tmp_path / "test_lr_2way_2shot_seed0.json").read_text())
    assert list(scores["per_class"]) == classes[-2:]
    capsys.readouterr()
    call("baselines.pretrained", smears, *flags, *run)
    assert "already done" in capsys.readouterr().out
    error = refused(capsys, monkeypatch, "baselines.pretrained", smears, *flags, *run, "--seed", 1)
    assert "--overwrite" in error
    before = load_checkpoint(tmp_path)["state_dict"]
    call("baselines.pretrained", smears, *flags, *run, "--seed", 1, "--overwrite")
    assert not states_equal(before, load_checkpoint(tmp_path)["state_dict"])
    misspelt = [*flags[:-1], "columnar"]
    error = refused(capsys, monkeypatch, "baselines.pretrained", smears, *misspelt, *run)
    assert "columnar" in error


def test_figures(smears, tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    flags = ["--weights", "none", "--arch", "conv4", "--image-size", 32, "--model-path", run]
    call("baselines.pretrained", smears, *flags)
    call("test", smears, "--resume", run, "--k-shot", 2, "-j", 0)
    out = ["--out", tmp_path / "figures", "--only", "tsne", "confusion", "-j", 0]
    call("plots.__main__", run, "--data", smears, *out)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names >= {"tsne.png", "confusion.png"}


def test_augmented_copies_on_request(data, tmp_path):
    flags = ["--weights", "none", "--arch", "conv4", "--image-size", 32]
    pretrained.main([*map(str, flags), "--model-path", str(tmp_path)])
    call("test", data, "--resume", tmp_path, "--k-shot", 2, "-j", 0, "--augnum", 3)
    scores = json.loads((tmp_path / "test_lr_3way_2shot_seed0.json").read_text())
    assert scores["args"]["augnum"] == 3


@pytest.mark.parametrize("end", [".pt", ".ts", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_exports_take_pixels_from_0_to_1(frozen, tmp_path, capsys, end):
    """Mean and standard deviation are a layer of the exported encoder."""
    root, arch, _ = frozen
    if end == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    out = tmp_path / f"it{end}"
    load_script("scripts/export").main([str(root / "frozen"), str(out)])
    *lines, _ = capsys.readouterr().out.strip().splitlines()
    images = torch.rand(3, 3, 32, 32)
    namespace = {"images": images.numpy()}
    exec("\n".join(lines), namespace)  # as a user would paste them
    expected = query_encoder(load_checkpoint(root / "frozen"))(images).numpy()
    found = namespace["outputs"] if end == ".onnx" else namespace["model"](images).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
