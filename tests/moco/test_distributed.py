"""Processes on the CPU, joined by gloo."""

import pytest
import torch

import gloo_workers
from conftest import free_url
from datasets.files import InputError
from moco import distributed


def plan(nproc, **how):
    values = dict(
        device="cpu", gpu=None, multiprocessing_distributed=nproc is not None, nproc=nproc,
        world_size=1, rank=0, dist_url=free_url(), dist_backend="auto",
    )  # fmt: skip
    return distributed.plan(**{**values, **how})


def test_two_processes_are_one_with_the_same_batchnorm_groups(tmp_path):
    distributed.launch(plan(None), gloo_workers.contrast, tmp_path, 2, 4)
    distributed.launch(plan(2), gloo_workers.contrast, tmp_path, 1, 4)
    one, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("1_0.pt", "2_0.pt", "2_1.pt")
    )
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    for name in ("queue", "queue_position"):
        assert torch.equal(first["state"][name], second["state"][name])
        torch.testing.assert_close(first["state"][name], one["state"][name], rtol=1e-4, atol=1e-5)
    for name in ("query_encoder.head.weight", "key_encoder.backbone.blocks.0.0.weight"):
        torch.testing.assert_close(first["state"][name], one["state"][name], rtol=1e-3, atol=1e-5)
    for encoder in ("query_encoder", "key_encoder"):
        for kind in ("running_mean", "running_var"):
            name = f"{encoder}.backbone.blocks.1.1.{kind}"
            assert torch.equal(first["state"][name], second["state"][name])
            torch.testing.assert_close(
                first["state"][name], one["state"][name], rtol=1e-3, atol=1e-5
            )
    # A queue of 24 has been written over once and more: nothing of the start is left.
    assert one["state"]["queue_position"].item() == 4 * 8 % 24


def test_the_batchnorm_groups_matter(tmp_path):
    """The test above can fail: one group is not two."""
    distributed.launch(plan(None), gloo_workers.contrast, tmp_path, 2, 1)
    two = torch.load(tmp_path / "1_0.pt", weights_only=True)["losses"]
    distributed.launch(plan(None), gloo_workers.contrast, tmp_path, 1, 1)
    one = torch.load(tmp_path / "1_0.pt", weights_only=True)["losses"]
    assert abs(one - two).item() > 1e-3


def test_collectives(tmp_path):
    distributed.launch(plan(2), gloo_workers.collectives, tmp_path)
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
        distributed.launch(plan(2), gloo_workers.fail, tmp_path)
    assert "this is wrong" not in capfd.readouterr().err


def test_plan_contradictions():
    with pytest.raises(InputError, match="--nproc 2 needs"):
        plan(2, multiprocessing_distributed=False)
    with pytest.raises(InputError, match="--rank 3"):
        plan(None, rank=3, world_size=2)
    with pytest.raises(InputError, match="names one GPU, but 2 processes"):
        plan(2, gpu=1)
    with pytest.raises(InputError, match="cuda:1 names one GPU"):
        plan(2, device="cuda:1")
    with pytest.raises(InputError, match="nccl needs GPUs"):
        plan(2, dist_backend="nccl")
    assert plan(3, world_size=2).processes == 6
    assert not plan(None).distributed


def test_pick_device(capsys):
    assert distributed.pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="--device gpu"):
        distributed.pick_device("gpu")
    if not torch.cuda.is_available():
        assert distributed.pick_device("auto", gpu=1).type == "cpu"
        assert "no GPU here" in capsys.readouterr().err
        with pytest.raises(InputError, match="this machine has 0"):
            distributed.pick_device("cuda")


def test_readers():
    assert distributed.readers(0) == 0
    assert distributed.readers(1000) == distributed.processors()
    assert distributed.readers(2, nproc=4) == 1
