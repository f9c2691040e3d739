"""Distribution alignment of pseudo labels, against values computed by hand."""

import dataclasses
import re
import shutil

import pytest
import torch

from common.errors import InputError
from conftest import call, refused, states_equal
from datasets.pseudo import load_pseudo_labels, save_pseudo_labels
from moco.checkpoint import load_checkpoint
from moco.config import Distillation
from moco.distill import align, require_read
from trainer.flags import parse
from trainer.settings import resolve


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dic-dispersion norm --dic-interval 1", "--dic-interval, --dic-dispersion: no effect "
         "without --correction dic"),
        ("--correction ddl --dic-interval 1", "--dic-interval: no effect without"),
        ("--dic-scale 3", "--dic-scale: no effect without --correction dic or ddl"),
        ("--pseudo-label soft --alpha 0.5", "--alpha: no effect without an adaptive"),
        ("--losses con+reg --correction dic --pseudo-label hard", "--correction, --pseudo-label: "
         "no effect without a classification loss"),
        ("--no-p-label --losses cls", "--losses: no effect without --p-label"),
        ("--no-p-label --losses con+reg", "--losses: no effect without --p-label"),
        ("--no-p-label --cls-loss released", "--cls-loss: no effect without a classification loss"),
        ("--correction ddl --dic-gamma 0.2 --dic-scale 2", None),
        ("--correction none --dic-interval 10 --alpha 0.5", None),
    ],
)  # fmt: skip
def test_flags_without_effect(flags, message):
    given = parse(Distillation, ["data", "--savedir", "s", "--model-path", "m", *flags.split()])
    settings = resolve(Distillation, given, dict.fromkeys(
        ("amp", "views_by", "moco_dim", "student_weights", "student_classifier")
    ))  # fmt: skip
    if message is None:
        return require_read(settings, given)
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        require_read(settings, given)


def test_alignment_by_hand():
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64)  # means 0.7, 0.3
    expected = []
    for a, b in p.tolist():
        total = a / 0.7 + b / 0.3
        expected.append([a / 0.7 / total, b / 0.3 / total])
    torch.testing.assert_close(align(p), torch.tensor(expected, dtype=torch.float64))


def test_alignment_brings_the_mean_to_the_uniform_prior():
    even = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    torch.testing.assert_close(align(even), even)
    same = torch.tensor([[0.7, 0.2, 0.1]]).expand(5, 3)  # says nothing of the images
    torch.testing.assert_close(align(same), torch.full((5, 3), 1 / 3))
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 3, generator=generator) + torch.tensor([4.0, 0.0, -1.0])
    p = logits.softmax(dim=1)
    aligned = align(p)
    torch.testing.assert_close(aligned.sum(dim=1), torch.ones(400))
    before, after = ((rows.mean(dim=0) - 1 / 3).abs().max() for rows in (p, aligned))
    assert before > 0.4 and after < before - 0.1
    for _ in range(1000):  # in the limit, Sinkhorn–Knopp's, it is reached
        aligned = align(aligned)
    torch.testing.assert_close(aligned.mean(dim=0), torch.full((3,), 1 / 3))


def test_a_class_without_any_probability_stays_without():
    found = align(torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]]))
    assert found.isfinite().all() and found[:, 2].tolist() == [0, 0]


def test_a_student_of_aligned_labels(chain, data, tmp_path, capsys, monkeypatch):
    """It is the student of pseudo labels that were aligned beforehand; a resumed run keeps that."""
    flags = ["-b", 8, "-j", 0, "--bn-groups", 2, "--epochs", 1, "--pseudo-label", "soft"]

    def student(labels, name, *more):
        command = ["main_distill", data, "--savedir", labels, "--model-path", tmp_path / name]
        call(*command, *flags, *more)
        return load_checkpoint(tmp_path / name)["state_dict"]

    before = shutil.copytree(chain.labels, tmp_path / "labels")
    _, labels = load_pseudo_labels(before)
    p = align(torch.from_numpy(labels.probabilities)).numpy()
    save_pseudo_labels(before, dataclasses.replace(labels, probabilities=p))
    aligned = student(chain.labels, "aligned", "--pseudo-balance", "align")
    assert states_equal(aligned, student(before, "before"))
    assert not states_equal(aligned, student(chain.labels, "none"))
    command = [
        "main_distill",
        data,
        "--savedir",
        chain.labels,
        "--model-path",
        tmp_path / "aligned",
    ]
    error = refused(capsys, monkeypatch, *command, *flags, "--epochs", 2)
    assert "--pseudo-balance none conflicts with" in error


def test_a_run_of_an_earlier_version_resumes_with_its_flags(chain, data, tmp_path, monkeypatch):
    """Which a new run refuses now."""
    argv = ["main_distill", data, "--savedir", chain.labels, "--model-path", tmp_path, "-b", 8,
            "-j", 0, "--bn-groups", 2, "--pseudo-label", "soft", "--alpha", 0.5]  # fmt: skip
    with pytest.raises(InputError, match="--alpha: no effect"):
        call(*argv, "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr("moco.distill.require_read", lambda *_: None)
        call(*argv, "--epochs", 1)
    call(*argv, "--epochs", 2)
    assert load_checkpoint(tmp_path)["epoch"] == 2
    argv[argv.index(tmp_path)] = tmp_path / "elsewhere"
    call(*argv, "--resume", tmp_path, "--epochs", 3)
    assert load_checkpoint(tmp_path / "elsewhere")["epoch"] == 3
