"""The baselines: losses against naive loops, and each method from training to scores."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from baselines import scratch, simclr, srl
from common.errors import InputError
from conftest import REPOSITORY, call
from datasets import open_dataset
from datasets.episode import Task
from moco.checkpoint import load_checkpoint, query_encoder
from moco.losses import tempered_kl
from models import Encoder
from trainer import cli

SMALL = "--arch conv4 --image-size 32 -b 8 -j 0".split()


def train(module, data, folder, *more):
    module.main([str(word) for word in (data, "--model_path", folder, *SMALL, *more)])
    return load_checkpoint(folder)


def test_nt_xent_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1)
    logits, positives = simclr.nt_xent_logits(z, 0.5)
    found = torch.nn.functional.cross_entropy(logits, positives).item()
    total = 0.0
    for i in range(6):
        j = (i + 3) % 6
        sims = {k: math.exp(float(z[i] @ z[k]) / 0.5) for k in range(6) if k != i}
        total -= math.log(sims[j] / sum(sims.values()))
    assert found == pytest.approx(total / 6, rel=1e-5)


def test_distillation_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 4, 3, generator=generator)
    total = 0.0
    for a, b in zip(teacher.tolist(), student.tolist()):
        p = [math.exp(x / 4) for x in a]
        q = [math.exp(x / 4) for x in b]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += 16 * sum(x * math.log(x / y) for x, y in zip(p, q))
    assert tempered_kl(teacher, student, 4).item() == pytest.approx(total / 4, rel=1e-5)
    assert tempered_kl(teacher, teacher, 2).item() == pytest.approx(0, abs=1e-6)


def test_scratch_learns_the_support_set_and_is_scored_by_its_classifier(data, tmp_path):
    checkpoint = train(
        scratch, data, tmp_path, "--k_shot", 2, "--epochs", 30, "--seed", 3, "--n_way", 3
    )
    task = Task.from_dict(checkpoint["task"])
    assert (task.k_shot, task.seed) == (2, 3)
    assert checkpoint["args"]["batch_size"] == 6  # the whole support set
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    assert sum(line["loss"] for line in lines[-10:]) < 0.8 * sum(
        line["loss"] for line in lines[:10]
    )
    call("test", data, "--resume", tmp_path, "--load_cla", "-j", 0)
    scores = json.loads((tmp_path / "test_direct_3way_2shot_seed3.json").read_text())
    assert sum(map(sum, scores["confusion"])) == len(open_dataset(data).rare) - 6


def test_simclr(data, tmp_path):
    checkpoint = train(simclr, data, tmp_path, "--epochs", 2, "--knn-every", 1)
    assert checkpoint["args"]["aug_plus"] and checkpoint["stage"] == "simclr"
    encoder = query_encoder(checkpoint)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 64)  # the backbone's features
    call("test", data, "--resume", tmp_path, "--k_shot", 2, "-j", 0)
    assert (tmp_path / "test_lr_3way_2shot_seed0.json").is_file()
    other = train(simclr, data, tmp_path / "t", "--epochs", 1, "--simclr-t", 5, "--no-aug-plus")
    first = train(simclr, data, tmp_path / "u", "--epochs", 1, "--no-aug-plus")
    name = "projection.0.weight"
    assert not torch.equal(other["state_dict"][name], first["state_dict"][name])


def test_srl_simple_and_distill(data, tmp_path):
    simple = train(srl, data, tmp_path / "s", "--epochs", 2)
    assert simple["state_dict"]["classifier.linear.weight"].shape == (4, 64)
    found = {}
    for name, more in {"d": [], "t": ["--distill-t", 1], "w": ["--distill-weight", 1]}.items():
        flags = ["--teacher", tmp_path / "s", "--epochs", 1, *more]
        found[name] = train(srl, data, tmp_path / name, *flags)
    assert found["d"]["stage"] == "srl_distill"
    weights = [c["state_dict"]["classifier.linear.weight"] for c in (simple, *found.values())]
    for number, weight in enumerate(weights):
        assert not any(torch.equal(weight, other) for other in weights[:number])
    call("test", data, "--resume", tmp_path / "d", "--k_shot", 2, "-j", 0)
    assert (tmp_path / "d" / "test_lr_3way_2shot_seed0.json").is_file()


def test_teacher_computes_as_its_student(data, tmp_path, monkeypatch):
    train(srl, data, tmp_path / "s", "--epochs", 0)
    encoders = []
    forward = Encoder.forward

    def noting(encoder, images):
        weight = encoder.backbone.blocks[1][0].weight
        channels_last = weight.is_contiguous(memory_format=torch.channels_last)
        encoders.append((weight.requires_grad, encoder.amp, channels_last))
        return forward(encoder, images)

    monkeypatch.setattr(Encoder, "forward", noting)
    train(srl, data, tmp_path / "d", "--teacher", tmp_path / "s", "--epochs", 1, "--amp")
    assert set(encoders) == {(True, True, True), (False, True, True)}


def test_srl_resumes(data, tmp_path):
    whole = train(srl, data, tmp_path / "whole", "--epochs", 2)
    train(srl, data, tmp_path / "parts", "--epochs", 1)
    parts = train(srl, data, tmp_path / "parts", "--epochs", 2, "--resume", tmp_path / "parts")
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name


def test_srl_does_not_resume_with_another_teacher(data, tmp_path):
    train(srl, data, tmp_path / "s", "--epochs", 1)
    train(srl, data, tmp_path / "d", "--teacher", tmp_path / "s", "--epochs", 1)
    train(srl, data, tmp_path / "d", "--teacher", tmp_path / "s", "--epochs", 2)
    train(srl, data, tmp_path / "s", "--epochs", 0, "--seed", 5, "--overwrite")
    with pytest.raises(InputError, match="trained on or replaced since .* began to learn from it"):
        train(srl, data, tmp_path / "d", "--teacher", tmp_path / "s", "--epochs", 3)


def test_classes_in_another_order_are_other_labels(data, tmp_path):
    rare = ["--rare-classes", "DF", "VASC"]
    one = ["--base-classes", "NV", "MEL", "BKL", "BCC", *rare]
    other = ["--base-classes", "BCC", "NV", "MEL", "BKL", *rare]
    train(srl, data, tmp_path / "s", "--epochs", 1, *one)
    says = "was trained with the classes in another order: 'NV', 'MEL', 'BKL', 'BCC'"
    with pytest.raises(InputError, match=says):
        train(srl, data, tmp_path / "s", "--epochs", 2, *other)
    with pytest.raises(InputError, match=says):
        train(srl, data, tmp_path / "d", "--teacher", tmp_path / "s", "--epochs", 1, *other)


@pytest.mark.parametrize(
    ("module", "flags", "expected"),
    [
        (simclr, ["-b", 1], "--batch-size 1: at least 2 images"),
        (srl, ["--teacher", "CHAIN"], "stage (a)"),
        (simclr, ["-b", 64], "--batch-size 64"),
        (scratch, ["--k_shot", 50], "--k-shot must be in [1, "),
    ],
)
def test_refusals(module, flags, expected, chain, data, tmp_path, capsys, monkeypatch):
    flags = [chain.pretrained if word == "CHAIN" else word for word in flags]
    argv = [data, "--model_path", tmp_path / "x", *SMALL, *flags]
    monkeypatch.setattr("sys.argv", ["x.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        cli.run(module.main)
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and expected in message and len(message.splitlines()) == 1


def test_teacher_with_another_image_size(data, tmp_path):
    train(srl, data, tmp_path / "s", "--epochs", 0)
    with pytest.raises(ValueError, match="image-size"):
        train(srl, data, tmp_path / "d", "--teacher", tmp_path / "s", "--image-size", 48)


def test_encoders_have_no_classifier_to_load(data, tmp_path):
    train(srl, data, tmp_path, "--epochs", 0)
    with pytest.raises(ValueError, match="SRL-simple.*classifier"):
        call("test", data, "--resume", tmp_path, "--load_cla")


def test_another_task_is_not_resumed(data, tmp_path):
    train(scratch, data, tmp_path, "--epochs", 1, "--k_shot", 2, "-b", 4)
    with pytest.raises(ValueError, match="another task|different task"):
        flags = ["--k_shot", 3, "-b", 4, "--resume", tmp_path]
        train(scratch, data, tmp_path, "--epochs", 2, *flags)


def test_runs_of_other_baselines_are_read(data, tmp_path):
    """Also where nothing but the command itself registers their stages, and in spawned processes:
    these tests do it for all."""
    small = ["--arch", "conv4", "--image-size", 32, "-j", 0]
    begun = tmp_path / "simclr"
    call("baselines.simclr", data, *small, "-b", 8, "--model-path", begun, "--epochs", 0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for words in (
        ["-m", "baselines.srl", data, "--weights", begun, "-b", 8, "--epochs", 0],
        ["-m", "baselines.cactus_protonet", data, "--encoder", begun, "--clusters", 6,
         "--partitions", 1, "--episode-way", 2, "--query", 1, "--epochs", 0],
        ["main_moco.py", data, "--weights", begun, "-b", 8, "--moco-k", 32, "--bn-groups", 2,
         "--epochs", 0, "--multiprocessing-distributed", "--nproc", 2],
    ):  # fmt: skip
        command = [sys.executable, *words, *small, "--model-path", tmp_path / words[1]]
        ran = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0 and "0 epochs done" in ran.stdout, ran.stderr
