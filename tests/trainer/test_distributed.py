"""Processes on the CPU, joined by gloo."""

import pytest
import torch

import gloo_workers
from common.errors import InputError
from gloo_workers import plan
from trainer import distributed
from trainer.launch import launch


def test_collectives(tmp_path):
    launch(plan(2), gloo_workers.collectives, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["gathered"].tolist() == [0, 1, 10, 11]
        assert found["broadcast"].tolist() == [0, 1]
        assert found["mean"].tolist() == [5, 6]
        assert found["share"].tolist() == [2 * rank, 2 * rank + 1]
        assert found["x"].tolist() == [10 * rank, 10 * rank + 1]


def test_collectives_are_the_identity_alone(tmp_path):
    gloo_workers.collectives(torch.device("cpu"), tmp_path)
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    for name in ("gathered", "broadcast", "mean", "x"):
        assert found[name].tolist() == [0, 1]


def test_a_workers_bad_input_is_raised(tmp_path, capfd):
    with pytest.raises(InputError, match="^this is wrong$"):
        launch(plan(2), gloo_workers.fail, tmp_path)
    assert "this is wrong" not in capfd.readouterr().err


@pytest.mark.parametrize("length", [pytest.param(0, marks=pytest.mark.slow), 200_000])
def test_one_workers_reason_is_told(tmp_path, length):
    """Not that the other one has lost it; and one that is too long for a pipe is cut."""
    with pytest.raises(InputError, match="^this is wrong"):
        launch(plan(2), gloo_workers.fail_alone, tmp_path, length)


def test_pick_device(capsys):
    assert distributed.pick_device("cpu").type == "cpu"
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(InputError, match=f"--device {name}: expected auto, cpu, cuda"):
            distributed.pick_device(name)
    if not torch.cuda.is_available():
        assert distributed.pick_device("auto", gpu=1).type == "cpu"
        assert "no GPU here" in capsys.readouterr().err
        with pytest.raises(InputError, match="this machine has 0"):
            distributed.pick_device("cuda")


def test_readers():
    assert distributed.readers(0) == 0
    assert distributed.readers(1000) == distributed.processors()
    assert distributed.readers(2, nproc=4) == 1
