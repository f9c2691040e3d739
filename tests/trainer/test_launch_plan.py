"""The processes of a run, by flags and by launcher."""

import pytest

from common.errors import InputError
from gloo_workers import plan
from trainer import launch_plan, launchers


def test_conflicting_flags():
    with pytest.raises(InputError, match="--nproc 2 needs"):
        plan(2, multiprocessing_distributed=False)
    with pytest.raises(InputError, match=r"--rank must be in \[0, 1\] .*, got 3"):
        plan(None, rank=3, world_size=2)
    with pytest.raises(InputError, match="--gpu 1 selects one GPU for 2 processes"):
        plan(2, gpu=1)
    with pytest.raises(InputError, match="cuda:1 selects one GPU"):
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
    assert plan(2).url == launch_plan.ANY_PORT  # on one machine, whatever --dist-url is
    assert plan(2, dist_url="tcp://localhost:10001").url == launch_plan.ANY_PORT
    second = plan(3, world_size=2, rank=1, dist_url="tcp://node1:10001")
    assert (second.world_size, second.first_rank, second.nproc) == (6, 3, 3)
    assert (second.url, second.local_world_size) == ("tcp://node1:10001", 3)


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
SRUN = {
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_LAUNCHER_PORT": "40001",
}  # fmt: skip


@pytest.fixture
def started_by(monkeypatch):
    """Return a function that sets the variables of launchers."""

    def set_environment(*environments):
        for name in (*TORCHRUN, *SRUN):
            monkeypatch.delenv(name, raising=False)
        for environment in environments:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)

    return set_environment


def test_plan_of_torchrun(started_by):
    started_by(TORCHRUN)
    result = plan(None)
    assert (result.url, result.world_size, result.first_rank) == ("env://", 4, 3)
    assert (result.nproc, result.local_rank, result.local_world_size) == (1, 1, 2)
    started_by(SRUN, TORCHRUN)  # torchrun in each of srun's tasks
    assert plan(None) == result


def test_plan_of_srun(started_by):
    started_by(SRUN)
    result = plan(None)
    assert (result.url, result.world_size, result.first_rank) == ("tcp://gpu07:22345", 5, 4)
    assert (result.nproc, result.local_rank, result.local_world_size) == (1, 0, 1)
    assert plan(None, dist_url="tcp://gpu07:10001").url == "tcp://gpu07:10001"
    started_by(SRUN, {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "555"})  # as many scripts set
    assert plan(None).url == "tcp://10.0.0.7:555"
    one_machine = {"SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_NODEID": "0", "SLURM_LOCALID": "4"}
    started_by(SRUN, one_machine)
    result = plan(None)
    assert result.url.startswith("file:///") and "12345.0-40001" in result.url
    assert (result.local_rank, result.local_world_size) == (4, 5)
    started_by(SRUN, {"SLURM_STEP_NUM_TASKS": "1"})  # as in `srun --pty bash`
    assert plan(None).url is None and plan(2).world_size == 2
    started_by({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})  # in a batch script, outside srun
    assert plan(None).url is None


def test_conflicting_or_incomplete_launchers(started_by):
    for environment, by in ((TORCHRUN, "torchrun"), (SRUN, "srun")):
        started_by(environment)
        with pytest.raises(InputError, match=f"{by} started . .*--multiprocessing-distributed"):
            plan(2)
        with pytest.raises(InputError, match=f"{by} started . .*--world-size"):
            plan(None, world_size=2, dist_url="tcp://node1:10001")
        with pytest.raises(InputError, match="selects one GPU"):
            started_by(environment, {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "5"})
            plan(None, gpu=1)
    started_by({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(
        InputError, match="torchrun .*missing LOCAL_RANK, LOCAL_.* unset RANK, WORLD_SIZE"
    ):
        plan(None)
    started_by(SRUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLURM_LOCALID")
        with pytest.raises(InputError, match="incomplete srun .*missing SLURM_LOCALID;"):
            plan(None)
    by_hand = {name: TORCHRUN[name] for name in TORCHRUN if name != "TORCHELASTIC_RUN_ID"}
    started_by(SRUN, by_hand)
    with pytest.raises(InputError, match="rank 4 of 5, but RANK=3 and WORLD_SIZE=4"):
        plan(None)
    started_by(TORCHRUN, {"RANK": "zero"})
    with pytest.raises(InputError, match="RANK=zero: expected a number"):
        plan(None)
    started_by(TORCHRUN, {"RANK": "4"})
    with pytest.raises(InputError, match=r"RANK must be in \[0, 3\] .*, got 4"):
        plan(None)


@pytest.mark.parametrize(
    "nodes, first",
    [("node1", "node1"), ("n1,n2", "n1"), ("gpu[03-05,7]", "gpu03"), ("a[1-2]-x,b", "a1-x"),
     ("r-[a,b]", "r-a")],
)  # fmt: skip
def test_first_host(nodes, first):
    assert launchers._first_host(nodes) == first
