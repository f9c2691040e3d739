"""Released checkpoints of the authors, with the names and shapes of their code."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import InputError
from conftest import call, refused
from datasets import synthetic
from datasets.episode import load_task
from moco.checkpoint import CLASSIFIER, backbone_weights, load_checkpoint, query_encoder
from moco.weights import initial_weights
from models.resnet12 import WIDTHS
from trainer.checkpoint import CHECKPOINT

QUEUE = 32


def their_weights():
    """A state_dict with the prefix of DistributedDataParallel."""
    torch.manual_seed(0)
    weights = {"queue": F.normalize(torch.randn(128, QUEUE), dim=0)}
    weights["queue_ptr"] = torch.tensor([16])
    for encoder in ("encoder_q", "encoder_k"):
        for layer, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS), start=1):
            block = f"{encoder}.layer{layer}.0"
            kernels = {f"conv{n}": (width, before if n == 1 else width, 3, 3) for n in (1, 2, 3)}
            for name, shape in {**kernels, "downsample.0": (width, before, 1, 1)}.items():
                fan = shape[1] * shape[2] * shape[3]
                weights[f"{block}.{name}.weight"] = torch.randn(shape) * (2 / fan) ** 0.5
            for name in ("bn1", "bn2", "bn3", "downsample.1"):
                weights[f"{block}.{name}.weight"] = torch.rand(width) + 0.5
                weights[f"{block}.{name}.bias"] = torch.randn(width) * 0.1
                weights[f"{block}.{name}.running_mean"] = torch.randn(width) * 0.1
                weights[f"{block}.{name}.running_var"] = torch.rand(width) + 0.5
                weights[f"{block}.{name}.num_batches_tracked"] = torch.tensor(7)
        weights[f"{encoder}.classifier.weight"] = torch.randn(128, 640) * 0.04
        weights[f"{encoder}.classifier.bias"] = torch.randn(128) * 0.1
    return {f"module.{name}": value for name, value in weights.items()}


def their_embedding(images, weights):
    """The embedding by these weights in evaluation mode, step by step."""
    w = {name.removeprefix("module.encoder_q."): value for name, value in weights.items()}

    def bn(x, name):
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{kind}"] for kind in kinds))

    x = images
    for block in (f"layer{n}.0" for n in (1, 2, 3, 4)):
        shortcut = bn(F.conv2d(x, w[f"{block}.downsample.0.weight"]), f"{block}.downsample.1")
        for n in (1, 2, 3):
            x = bn(F.conv2d(x, w[f"{block}.conv{n}.weight"], padding=1), f"{block}.bn{n}")
            x = F.leaky_relu(x + shortcut if n == 3 else x, 0.1)
        x = F.max_pool2d(x, 2)
    return F.linear(x.mean(dim=(2, 3)), w["classifier.weight"], w["classifier.bias"])


@pytest.fixture
def released(tmp_path, monkeypatch):
    monkeypatch.setattr("moco.released.IMAGE_SIZE", 32)  # 224 pixels would take a minute
    optimizer = {"state": {}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    contents = {"epoch": 200, "arch": "resnet12", "state_dict": their_weights()}
    torch.save({**contents, "optimizer": optimizer}, tmp_path / CHECKPOINT)
    return tmp_path


def add_classifier(folder, classes=3):
    torch.manual_seed(1)
    weights = {"module.layer.1.weight": torch.randn(classes, 128) * 0.1}
    weights["module.layer.1.bias"] = torch.randn(classes) * 0.1
    torch.save({"epoch": 200, "state_dict": weights}, folder / CLASSIFIER)
    return weights


def test_same_embeddings_as_their_code(released):
    found = load_checkpoint(released)
    assert found["stage"] == "moco" and found["epoch"] == 200
    images = torch.rand(2, 3, 48, 48)
    ours = query_encoder(found)(images)
    torch.testing.assert_close(ours, their_embedding(images, their_weights()))
    theirs = their_weights()["module.queue"]
    assert torch.equal(found["state_dict"]["queue"], theirs.T)
    assert found["state_dict"]["queue_position"] == 16 and found["args"]["moco_k"] == QUEUE


def test_initial_weights(released):
    found, expected = initial_weights(str(released), "resnet12"), load_checkpoint(released)
    assert found.weights.keys() == backbone_weights(expected).keys() and len(found.weights) > 80


def test_legacy_format(released):
    """As written by torch before 1.6."""
    contents = torch.load(released / CHECKPOINT, weights_only=True)
    torch.save(contents, released / CHECKPOINT, _use_new_zipfile_serialization=False)
    assert load_checkpoint(released)["epoch"] == 200


def test_scored(released, chain, data, capsys, monkeypatch):
    """The encoder by logistic regression; the student by its classifier, with --savedir."""
    call("test", data, "--resume", released, "--k_shot", 2, "-j", 0)
    assert "classifier: lr" in capsys.readouterr().out
    add_classifier(released)
    student = ["test", data, "--resume", released, "--load_cla", "-j", 0]
    assert "--savedir" in refused(capsys, monkeypatch, *student)
    call(*student, "--savedir", chain.labels)
    assert "classifier: direct" in capsys.readouterr().out
    add_classifier(released, classes=2)
    line = refused(capsys, monkeypatch, *student, "--savedir", chain.labels, "--overwrite")
    assert "2 classes" in line and line.endswith("has 3")
    task, chosen = load_task(chain.labels), released / "chosen.csv"
    rows = [f"{i},{name}" for ids, name in zip(task.support_ids, task.classes) for i in ids]
    chosen.write_text("\n".join(["image,label", *rows]))
    line = refused(capsys, monkeypatch, *student, "--support", chosen, "--overwrite")
    assert "2 classes" in line and line.endswith("chosen.csv has 3")


def test_as_teacher(released, data, tmp_path, capsys):
    labels, student = tmp_path / "labels", tmp_path / "student"
    call("generate_pseudo", "--datadir", data, "--resume", released, "--savedir", labels,
         "--k_shot", 2, "-j", 0)  # fmt: skip
    assert "unknown dataset" in capsys.readouterr().out
    call("main_distill", data, "--savedir", labels, "--model_path", student, "--epochs", 1, "-j", 0)
    args = load_checkpoint(student)["args"]
    assert args["moco_k"] == QUEUE and args["amp"] is False
    call("test", data, "--resume", student, "--load_cla", "-j", 0)
    assert "classifier: direct" in capsys.readouterr().out


def test_resuming_stage_a(released, tmp_path, capsys, monkeypatch):
    """With their momentum; settings not in their file (here the batch size) are free."""
    contents = torch.load(released / CHECKPOINT, weights_only=True)
    weights = their_weights()
    trained = [name for name in weights if name.endswith(("weight", "bias"))]
    shapes = [weights[name].shape for name in trained]
    of_query = {n: shape for n, shape in enumerate(shapes) if "encoder_q" in trained[n]}
    ours = dict(query_encoder(load_checkpoint(released)).named_parameters())
    contents["optimizer"]["state"] = {
        n: {"momentum_buffer": torch.full(shape, float(n))} for n, shape in of_query.items()
    }
    torch.save(contents, released / CHECKPOINT)
    state = load_checkpoint(released)["optimizer"]["state"]
    momentum = {name: state[n]["momentum_buffer"] for n, name in enumerate(ours)}
    assert {name: value.shape for name, value in momentum.items()} == {
        name: theta.shape for name, theta in ours.items()
    }
    for name, theirs in {
        "backbone.blocks.0.bn1.weight": "layer1.0.bn1.weight",
        "backbone.blocks.3.shortcut.0.weight": "layer4.0.downsample.0.weight",
        "head.bias": "classifier.bias",
    }.items():
        assert (momentum[name] == trained.index(f"module.encoder_q.{theirs}")).all()
    few, out = tmp_path / "few", tmp_path / "out"
    synthetic.make(few, base=12, rare=12, size=40, seed=0)  # one batch
    command = [few, "--resume", released, "--model_path", out, "--moco-k", QUEUE, "-j", 0]
    command += ["--image-size", 32, "-b", 8]
    call("main_moco", *command, "--epochs", 201)
    assert "does not record which images" in capsys.readouterr().out
    assert load_checkpoint(out)["epoch"] == 201
    line = refused(capsys, monkeypatch, "main_moco", *command, "--mlp", "--overwrite")
    assert "--mlp conflicts with" in line


def test_as_the_encoder_of_cactus(released, data, tmp_path, capsys):
    """Its images are unknown, as everywhere."""
    call("baselines.cactus_protonet", data, "--encoder", released, "--model-path", tmp_path / "p",
         "--arch", "conv4", "--image-size", 32, "--partitions", 2, "--clusters", 4, "--query", 1,
         "--episode-way", 2, "--epochs", 1, "-j", 0)  # fmt: skip
    assert "does not record which images it was trained on" in capsys.readouterr().out


def test_numbered_files(released, chain, data, tmp_path, capsys):
    """Their later code appends the epoch to both file names."""
    add_classifier(released)
    (released / CHECKPOINT).rename(released / "checkpoint_0190.pth.tar")
    student = released / "checkpoint_0190.pth.tar"
    assert load_checkpoint(student)["stage"] == "moco"  # the classifier is of another epoch
    (released / CLASSIFIER).rename(released / "checkpointClassifier_0190.pth.tar")
    assert load_checkpoint(student)["stage"] == "distill"
    command = ["test", data, "--resume", student, "--load_cla", "--savedir", chain.labels, "-j", 0]
    call(*command)
    assert "classifier: direct" in capsys.readouterr().out
    call("scripts/export", student, tmp_path / "student.pt", "--classifier")
    printed = capsys.readouterr().out
    assert "logits of 3 classes" in printed
    namespace = {}
    exec(printed, namespace)  # as a user pastes it
    assert namespace["model"](torch.rand(2, 3, 32, 32)).shape == (2, 3)
    student.rename(released / "theirs.pth.tar")  # renamed by the user
    assert load_checkpoint(released / "theirs.pth.tar")["stage"] == "moco"


@pytest.mark.parametrize("layer", ["classifier", "fc"])
def test_with_a_hidden_layer(released, layer):
    """--mlp replaces the last layer by two."""
    contents = torch.load(released / CHECKPOINT, weights_only=True)
    weights = contents["state_dict"]
    for encoder in ("encoder_q", "encoder_k"):
        name = f"module.{encoder}"
        for kind in ("weight", "bias"):
            last = weights.pop(f"{name}.classifier.{kind}")
            weights[f"{name}.{layer}.0.{kind}"] = torch.randn(640, *[640] * (last.dim() - 1)) * 0.04
            weights[f"{name}.{layer}.2.{kind}"] = last
    torch.save(contents, released / CHECKPOINT)
    found = load_checkpoint(released)
    assert found["args"]["mlp"] is True
    assert query_encoder(found)(torch.rand(2, 3, 32, 32)).shape == (2, 128)


def test_other_backbones_are_refused(released):
    torch.save({"arch": "4conv", "state_dict": their_weights()}, released / CHECKPOINT)
    with pytest.raises(InputError, match="resnet12 .*4conv"):
        load_checkpoint(released)
