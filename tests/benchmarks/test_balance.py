"""Ways to balance pseudo labels, against values computed by hand; and a run of all."""

import math

import pytest
import torch

from benchmarks import balance
from conftest import call


def test_sinkhorn_gives_each_class_the_same_share():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    p = (logits + torch.tensor([4.0, 0.0, -1.0])).softmax(dim=1)
    found = balance.sinkhorn(p)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(40, dtype=torch.float64))
    expected = torch.full((3,), 40 / 3, dtype=torch.float64)
    torch.testing.assert_close(found.sum(dim=0), expected, atol=1e-4, rtol=0)
    # Rows and columns of p are scaled, so that ratios of ratios stay.
    scale = (found / p).log()
    assert (scale[:, 0] - scale[:, 1]).std() < 1e-9


def test_logit_adjustment_is_the_log_of_the_shares():
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    assert balance.log_prior(p).tolist() == pytest.approx([math.log(0.7), math.log(0.3)])


def test_selection_keeps_the_most_confident_of_each_class():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.95, 0.05]])
    assert balance.select(p).tolist() == [0, 0, 0, 2.5, 2.5]
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4]])  # one class was never predicted
    assert balance.select(p).tolist() == [1, 1]


def test_weights_by_class_add_up_alike():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    assert balance.reweight(p).tolist() == pytest.approx([2 / 3] * 3 + [2])


def test_weights_by_confidence():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    certain = 1 - (-0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / math.log(2)
    expected = [3 * c / (1 + certain) for c in (1, 0, certain)]
    assert balance.confidence(p).tolist() == pytest.approx(expected)


def test_a_run(data, tmp_path, capsys):
    flags = ["--weights", "none", "--arch", "conv4", "--image-size", 32]
    call("baselines.pretrained", *flags, "--model-path", tmp_path)
    capsys.readouterr()
    flags = ["--k-shot", 2, "--tasks", 2, "--epochs", 0, "--images", 20]
    call("benchmarks.balance", data, "--resume", tmp_path, *flags)
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("teacher "))
    numbers = lines[start].removeprefix("teacher").split(maxsplit=3)
    assert numbers[3] == "+0.0 ± 0.0" and len(lines[start + 1 :]) == 14
    for line in lines[start + 1 :]:  # without training, one that starts as its teacher is it
        assert line.split()[-6:] == lines[start].split()[-6:]
