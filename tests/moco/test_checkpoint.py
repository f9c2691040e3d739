"""Checkpoints: contents and validation."""

import copy
import shutil

import pytest
import torch

from common.errors import InputError
from conftest import TINY, call
from datasets.pseudo import load_pseudo_labels
from moco.checkpoint import (
    BIAS,
    CLASSIFIER,
    F_C,
    load_checkpoint,
    made_from,
    query_encoder,
    student_classifier,
)
from trainer.checkpoint import CHECKPOINT, PREVIOUS


def test_checkpoint_describes_itself(chain):
    found = load_checkpoint(chain.student)
    assert found["stage"] == "distill" and found["epoch"] == 2
    assert found["args"]["arch"] == "conv4" and found["args"]["moco_k"] == 32  # the teacher's
    assert found["base"]["dataset"] == "isic2018"
    assert [len(ids) for ids in found["task"]["support_ids"]] == [2, 2, 2]
    assert found["made_by"]["command"].startswith("main_distill.py")
    assert load_checkpoint(chain.pretrained)["task"] is None


def test_steps_within_an_epoch_tell_checkpoints_apart(chain, data, tmp_path, capsys):
    """A process saves several of them between two epochs."""
    run = tmp_path / "run"
    shutil.copytree(chain.pretrained, run)
    testing = ["test", data, "--resume", run, "--k_shot", 2, "-j", 0]
    labelling = ["generate_pseudo", data, "--resume", run, "--savedir", tmp_path / "labels"]
    labelling += ["--k_shot", 2, "-j", 0]
    for steps in (0, 3):
        checkpoint = torch.load(run / CHECKPOINT, weights_only=True)
        checkpoint["part"] = {"steps": steps, "processes": []} if steps else None
        torch.save(checkpoint, run / CHECKPOINT)
        assert bool(steps) != made_from({"epoch": 2, "checkpoint_made_by": checkpoint["made_by"]},
                                        checkpoint)  # fmt: skip
        capsys.readouterr()
        for command in (testing, labelling):
            call(*command)
            again = "further in the next of 2 now; it is made again" in capsys.readouterr().out
            assert again == bool(steps)
            call(*command)
            assert "already done" in capsys.readouterr().out
    assert load_pseudo_labels(tmp_path / "labels")[1].teacher()["steps"] == 3


def test_an_unfinished_training_is_noted(chain, data, tmp_path, capsys):
    argv = ["main_moco", data, "--model-path", tmp_path, *TINY]
    call(*argv, "--epochs", 3, "--resume", chain.pretrained)
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for done, noted in ((2, True), (3, False)):
        torch.save(checkpoint | {"epoch": done}, tmp_path / CHECKPOINT)
        capsys.readouterr()
        call("test", data, "--resume", tmp_path, "--k_shot", 2, "-j", 0, "--overwrite")
        printed = capsys.readouterr().out
        assert (f"note: {tmp_path} has 2 of 3 epochs; the papers use the last" in printed) == noted


def test_loaded_networks_are_frozen(chain):
    found = load_checkpoint(chain.student / CHECKPOINT)
    encoder, classifier = query_encoder(found), student_classifier(found)
    for part in (encoder, classifier):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    name = "head.weight"
    assert torch.equal(encoder.state_dict()[name], found["state_dict"][f"query_encoder.{name}"])
    alone = torch.load(chain.student / CLASSIFIER, weights_only=True)
    assert torch.equal(alone["state_dict"]["linear.weight"], classifier.linear.weight)
    assert alone["epoch"] == 2 and alone["task"] == found["task"]


def test_bare_weights_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_unreadable(tmp_path, content):
    (tmp_path / "x.pth.tar").write_bytes(content)
    with pytest.raises(InputError, match="x.pth.tar") as error:
        load_checkpoint(tmp_path / "x.pth.tar")
    assert ". " not in str(error.value)  # without torch's advice


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_truncated(chain, tmp_path, part):
    whole = (chain.pretrained / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match=CHECKPOINT):
        load_checkpoint(tmp_path)


def test_flipped_bit_in_the_zip_directory(chain, tmp_path):
    """The compression method of the first entry, which leads to a zlib error."""
    content = bytearray((chain.pretrained / CHECKPOINT).read_bytes())
    content[content.find(b"PK\x01\x02") + 10] ^= 8
    (tmp_path / CHECKPOINT).write_bytes(content)
    shutil.copy(chain.pretrained / PREVIOUS, tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path)["epoch"] == load_checkpoint(tmp_path / PREVIOUS)["epoch"]


def changed(checkpoint, *path):
    """Return a copy with a changed value; `path`: its keys, then the value."""
    *keys, last, value = path
    changed_copy = parent = copy.deepcopy(checkpoint)
    for key in keys:
        parent = parent[key]
    parent[last] = value
    return changed_copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("args", "image_size", "x"), "--image-size .*'x'"),
        (("args", "image_size", -5), "--image-size must be at least 32, got -5"),
        (("args", "arch", "vgg"), "--arch must be one of .*, got vgg"),
        (("args", "mlp", 1), "--mlp .*1"),
        (("args", "schedule", 7), "--schedule .*7"),
        (("args", "schedule", [1, "x"]), "--schedule"),
        (("args", "base_classes", 3), "--base-classes .*3"),
        (("args", "epochs", None), "missing setting epochs"),
        (("args", "p_label", None), "missing setting p_label"),
        (("part", {"steps": "x", "processes": []}), "within an epoch"),
        (("part", {"steps": 1}), "'processes'"),
        (("state_dict", BIAS, torch.zeros(2)), "match the settings: classifier.linear.bias"),
        (("state_dict", F_C, torch.zeros(3, 7)), "match the settings: classifier.linear.weight"),
    ],
)
def test_invalid_contents(chain, tmp_path, change, message):
    torch.save(changed(load_checkpoint(chain.student), *change), tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match=f"{CHECKPOINT}.*{message}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("defect", ["shape", "nan", "none"])
def test_invalid_momentum(chain, data, tmp_path, defect):
    checkpoint = load_checkpoint(chain.pretrained)
    state = checkpoint["optimizer"]["state"][0]
    momentum = state["momentum_buffer"]
    state["momentum_buffer"] = {
        "shape": torch.zeros(3), "nan": torch.full_like(momentum, torch.nan), "none": None,
    }[defect]  # fmt: skip
    torch.save(checkpoint, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match=str(tmp_path)):
        call("main_moco", data, "--model_path", tmp_path, *TINY, "--epochs", 3)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_no_code_from_a_pickle_is_run(tmp_path):
    torch.save({"stage": "moco", "format": 1, "x": Malicious(tmp_path / "ran")}, tmp_path / "x")
    with pytest.raises(InputError, match=str(tmp_path / "x")):
        load_checkpoint(tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_incomplete_checkpoint(chain, tmp_path):
    whole = load_checkpoint(chain.pretrained)
    del whole["args"], whole["optimizer"]
    torch.save(whole, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="missing args, optimizer"):
        load_checkpoint(tmp_path)


def test_newer_format(tmp_path):
    torch.save({"stage": "moco", "format": 99}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="format 99, newer"):
        load_checkpoint(tmp_path)
