"""Processes on the CPU, joined by gloo."""

import pytest
import torch

import gloo_workers
from common.errors import InputError
from trainer import distributed, launch_plan
from trainer.launch import launch


def plan(nproc, **how):
    values = dict(
        device="cpu", gpu=None, multiprocessing_distributed=nproc is not None, nproc=nproc,
        world_size=1, rank=0, dist_url=None, dist_backend="auto", dist_timeout=60,
    )  # fmt: skip
    return launch_plan.plan(**{**values, **how})


def test_two_processes_are_one_with_the_same_batchnorm_groups(tmp_path):
    launch(plan(None), gloo_workers.contrast, tmp_path, 2, 4)
    launch(plan(2), gloo_workers.contrast, tmp_path, 1, 4)
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
    launch(plan(None), gloo_workers.contrast, tmp_path, 2, 1)
    two = torch.load(tmp_path / "1_0.pt", weights_only=True)["losses"]
    launch(plan(None), gloo_workers.contrast, tmp_path, 1, 1)
    one = torch.load(tmp_path / "1_0.pt", weights_only=True)["losses"]
    assert abs(one - two).item() > 1e-3


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


@pytest.mark.parametrize("length", [0, 200_000])
def test_one_workers_reason_is_told(tmp_path, length):
    """Not that the other one has lost it; and one that is too long for a pipe is cut."""
    with pytest.raises(InputError, match="^this is wrong"):
        launch(plan(2), gloo_workers.fail_alone, tmp_path, length)


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
    with pytest.raises(InputError, match="--world-size 2 needs --dist-url"):
        plan(2, world_size=2)
    for url in ("tcp://node1", "tcp://:10001", "tcp://node1:99999999", "node1:10001", "env://"):
        with pytest.raises(InputError, match="--dist-url .*expected tcp://HOST:PORT"):
            plan(2, world_size=2, dist_url=url)


def test_plan_of_flags():
    assert plan(None).url is None
    assert plan(2).url == launch_plan.ANY_PORT  # whatever --dist-url says, on one machine
    assert plan(2, dist_url="tcp://localhost:10001").url == launch_plan.ANY_PORT
    second = plan(3, world_size=2, rank=1, dist_url="tcp://node1:10001")
    assert (second.processes, second.first, second.nproc) == (6, 3, 3)
    assert (second.url, second.on_machine) == ("tcp://node1:10001", 3)


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
SRUN = {
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_LAUNCHER_PORT": "40001",
}  # fmt: skip


@pytest.fixture
def started_by(monkeypatch):
    """Have the environment say what a launcher says."""

    def set_environment(*those):
        for name in (*TORCHRUN, *SRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in {k: v for some in those for k, v in some.items()}.items():
            monkeypatch.setenv(name, value)

    return set_environment


def test_plan_of_torchrun(started_by):
    started_by(TORCHRUN)
    found = plan(None)
    assert (found.url, found.processes, found.first) == ("env://", 4, 3)
    assert (found.nproc, found.local, found.on_machine) == (1, 1, 2)
    started_by(SRUN, TORCHRUN)  # torchrun in each of srun's tasks
    assert plan(None) == found


def test_plan_of_srun(started_by):
    started_by(SRUN)
    found = plan(None)
    assert (found.url, found.processes, found.first) == ("tcp://gpu07:22345", 5, 4)
    assert (found.nproc, found.local, found.on_machine) == (1, 0, 1)
    assert plan(None, dist_url="tcp://gpu07:10001").url == "tcp://gpu07:10001"
    started_by(SRUN, {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "555"})  # as many scripts set
    assert plan(None).url == "tcp://10.0.0.7:555"
    one_machine = {"SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_NODEID": "0", "SLURM_LOCALID": "4"}
    started_by(SRUN, one_machine)
    found = plan(None)
    assert found.url.startswith("file:///") and "12345.0-40001" in found.url
    assert (found.local, found.on_machine) == (4, 5)
    started_by(SRUN, {"SLURM_STEP_NUM_TASKS": "1"})  # as in `srun --pty bash`
    assert plan(None).url is None and plan(2).processes == 2
    started_by({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})  # in a batch script, outside srun
    assert plan(None).url is None


def test_two_launchers_or_half_of_one(started_by):
    for environment, by in ((TORCHRUN, "torchrun"), (SRUN, "srun")):
        started_by(environment)
        with pytest.raises(InputError, match=f"{by} has started . .*--multiprocessing-distributed"):
            plan(2)
        with pytest.raises(InputError, match=f"{by} has started . .*--world-size"):
            plan(None, world_size=2, dist_url="tcp://node1:10001")
        with pytest.raises(InputError, match="names one GPU"):
            started_by(environment, {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "5"})
            plan(None, gpu=1)
    started_by({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(InputError, match="in part: RANK, WORLD_SIZE is set, but not LOCAL_RANK, L"):
        plan(None)
    started_by(SRUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLURM_LOCALID")
        with pytest.raises(InputError, match="srun.* in part: .* but not SLURM_LOCALID"):
            plan(None)
    by_hand = {name: TORCHRUN[name] for name in TORCHRUN if name != "TORCHELASTIC_RUN_ID"}
    started_by(SRUN, by_hand)
    with pytest.raises(InputError, match="srun says process 4 of 5, but RANK and WORLD_SIZE say 3"):
        plan(None)
    started_by(TORCHRUN, {"RANK": "zero"})
    with pytest.raises(InputError, match="RANK=zero: expected a number"):
        plan(None)
    started_by(TORCHRUN, {"RANK": "4"})
    with pytest.raises(InputError, match="RANK=4 does not exist in WORLD_SIZE=4"):
        plan(None)


@pytest.mark.parametrize(
    "nodes, first",
    [("node1", "node1"), ("n1,n2", "n1"), ("gpu[03-05,7]", "gpu03"), ("a[1-2]-x,b", "a1-x"),
     ("r-[a,b]", "r-a")],
)  # fmt: skip
def test_first_host(nodes, first):
    assert launch_plan._first_host(nodes) == first


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
