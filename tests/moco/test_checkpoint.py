"""Checkpoints: what is in them, and what is refused."""

import copy
import shutil

import pytest
import torch

from common.errors import InputError
from conftest import TINY, call
from moco.checkpoint import (
    BIAS,
    CLASSIFIER,
    F_C,
    load_checkpoint,
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


def test_parts_are_frozen_and_what_was_saved(chain):
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


def test_bare_weights_are_not_taken_for_a_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_unreadable(tmp_path, content):
    (tmp_path / "x.pth.tar").write_bytes(content)
    with pytest.raises(InputError, match="x.pth.tar cannot be read as a checkpoint") as found:
        load_checkpoint(tmp_path / "x.pth.tar")
    assert ". " not in str(found.value)  # torch goes on about what may have happened


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_truncated(chain, tmp_path, part):
    whole = (chain.pretrained / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match="cannot be read as a checkpoint: truncated"):
        load_checkpoint(tmp_path)


def test_a_bit_of_the_directory_is_flipped(chain, tmp_path):
    """Of how the first part is compressed: which ends in errors of zlib."""
    content = bytearray((chain.pretrained / CHECKPOINT).read_bytes())
    content[content.find(b"PK\x01\x02") + 10] ^= 8
    (tmp_path / CHECKPOINT).write_bytes(content)
    shutil.copy(chain.pretrained / PREVIOUS, tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path)["epoch"] == load_checkpoint(tmp_path / PREVIOUS)["epoch"]


def changed(checkpoint, *path):
    """A copy in which the value at `path`, all but its last, is the last."""
    *keys, last, value = path
    found = place = copy.deepcopy(checkpoint)
    for key in keys:
        place = place[key]
    place[last] = value
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("args", "image_size", "x"), "--image-size is 'x'"),
        (("args", "image_size", -5), "--image-size must be at least 32, got -5"),
        (("args", "arch", "vgg"), "--arch must be one of .*, got vgg"),
        (("args", "mlp", 1), "--mlp is 1"),
        (("args", "schedule", 7), "--schedule is 7"),
        (("args", "schedule", [1, "x"]), "--schedule is"),
        (("args", "base_classes", 3), "--base-classes is 3"),
        (("args", "epochs", None), "its settings lack epochs"),
        (("args", "p_label", None), "its settings lack p_label"),
        (("part", {"steps": "x", "processes": []}), "where in an epoch it is"),
        (("part", {"steps": 1}), "missing 'processes'"),
        (("state_dict", BIAS, torch.zeros(2)), "not those of its settings: classifier.linear.bias"),
        (("state_dict", F_C, torch.zeros(3, 7)), "of its settings: classifier.linear.weight"),
    ],
)
def test_contents_that_cannot_be(chain, tmp_path, change, says):
    """Though the file is whole."""
    torch.save(changed(load_checkpoint(chain.student), *change), tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match=f"is not a valid checkpoint: .*{says}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("of_all", ["shape", "nan", "none"])
def test_momentum_that_does_not_fit(chain, data, tmp_path, of_all):
    checkpoint = load_checkpoint(chain.pretrained)
    state = checkpoint["optimizer"]["state"][0]
    there = state["momentum_buffer"]
    state["momentum_buffer"] = {
        "shape": torch.zeros(3), "nan": torch.full_like(there, torch.nan), "none": None,
    }[of_all]  # fmt: skip
    torch.save(checkpoint, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="does not fit this run"):
        call("main_moco", data, "--model_path", tmp_path, *TINY, "--epochs", 3)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_runs_nothing(tmp_path):
    torch.save({"stage": "moco", "format": 1, "x": Malicious(tmp_path / "ran")}, tmp_path / "x")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_a_part_is_not_a_checkpoint(chain, tmp_path):
    whole = load_checkpoint(chain.pretrained)
    del whole["args"], whole["optimizer"]
    torch.save(whole, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="not a whole checkpoint: it lacks args, optimizer"):
        load_checkpoint(tmp_path)


def test_newer_format(tmp_path):
    torch.save({"stage": "moco", "format": 99}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="format 99, newer"):
        load_checkpoint(tmp_path)
