"""Collectives between CPU processes with gloo."""

import os
from types import SimpleNamespace

import pytest
import torch

import conftest
import gloo_workers
from common.errors import InputError
from common.failures import Unexpected
from gloo_workers import plan
from trainer import distributed
from trainer.launch import launch


@pytest.mark.parametrize(
    "paths, hidden", [([], True), (["tests/gpu"], False), (["tests/gpu", "tests/moco"], True)]
)
def test_gpus_are_hidden_but_from_the_gpu_tests(monkeypatch, paths, hidden):
    """So that results are those of the CPU wherever the tests run."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"])
    monkeypatch.setattr(conftest.tempfile, "mkdtemp", lambda **_: os.environ["XDG_CACHE_HOME"])
    where = SimpleNamespace(dir=conftest.REPOSITORY)
    conftest.pytest_configure(SimpleNamespace(args=paths or ["tests"], invocation_params=where))
    assert (os.environ.get("CUDA_VISIBLE_DEVICES") == "") == hidden


def test_collectives(tmp_path):
    launch(plan(2), gloo_workers.collectives, tmp_path)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result["gathered"].tolist() == [0, 1, 10, 11]
        assert result["broadcast"].tolist() == [0, 1]
        assert result["mean"].tolist() == [5, 6]
        assert result["share"].tolist() == [2 * rank, 2 * rank + 1]
        assert result["x"].tolist() == [10 * rank, 10 * rank + 1]


def test_collectives_are_the_identity_with_one_process(tmp_path):
    gloo_workers.collectives(torch.device("cpu"), tmp_path)
    result = torch.load(tmp_path / "0.pt", weights_only=True)
    for name in ("gathered", "broadcast", "mean", "x"):
        assert result[name].tolist() == [0, 1]


def test_workers_input_error_is_raised(tmp_path, capfd):
    with pytest.raises(InputError, match="^this is wrong$"):
        launch(plan(2), gloo_workers.fail, tmp_path)
    assert "this is wrong" not in capfd.readouterr().err


@pytest.mark.parametrize("length", [pytest.param(0, marks=pytest.mark.slow), 200_000])
def test_cause_is_reported(tmp_path, length):
    """Not the other rank's lost connection; a message too long for a pipe is truncated."""
    with pytest.raises(InputError, match="^this is wrong"):
        launch(plan(2), gloo_workers.fail_alone, tmp_path, length)


def test_an_unexpected_error_of_a_rank(tmp_path, capfd):
    """Its line, not the lost connection of the other; the traceback is in a file."""
    with pytest.raises(Unexpected) as error:
        launch(plan(2), gloo_workers.break_down, tmp_path)
    (file,) = tmp_path.glob("traceback-*")
    assert str(error.value).startswith("unexpected AttributeError: 'NoneType' object has no attr")
    assert str(error.value).endswith(f"its traceback is in {file}")
    assert "in break_down" in file.read_text(encoding="utf-8")
    assert "Traceback" not in capfd.readouterr().err


def test_pick_device(capsys):
    assert distributed.pick_device("cpu").type == "cpu"
    for name in ("gpu", "meta", "cuda:x", "mps"):
        with pytest.raises(InputError, match=f"--device {name}: expected auto"):
            distributed.pick_device(name)
    if not torch.cuda.is_available():
        assert distributed.pick_device("auto", gpu=1).type == "cpu"
        assert "no GPU available" in capsys.readouterr().err
        with pytest.raises(InputError, match="this machine has 0"):
            distributed.pick_device("cuda")


def test_readers():
    assert distributed.readers(0) == 0
    assert distributed.readers(1000) == distributed.available_cpus()
    assert distributed.readers(2, nproc=4) == 1
