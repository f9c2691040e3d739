"""Every way to start processes, and failures to connect them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from common.errors import InputError
from conftest import REPOSITORY, TINY, call, refused, states_equal
from moco.checkpoint import load_checkpoint
from trainer import launch
from trainer.launch_plan import Plan


def command(data, folder, *more):
    argv = ["main_moco.py", data, "--model_path", folder, *TINY, "--epochs", 2, *more]
    return [str(arg) for arg in argv]


def start(argv, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    options = {"cwd": REPOSITORY, "env": environment, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Tests that run in the background ignore SIGINT, and so would their processes.
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def srun_environment(rank, of=2):
    """Return what srun sets for each of its tasks on one machine."""
    return {
        "SLURM_STEP_NUM_TASKS": f"{of}", "SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}",
        "SLURM_NODEID": "0", "SLURM_JOB_ID": f"{os.getpid()}", "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": f"{of}",
        "SLURM_STEP_LAUNCHER_PORT": "40001",
    }  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(processes):
    """Return the outputs of processes that must succeed."""
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


@pytest.mark.slow
def test_every_launcher_trains_the_same(data, tmp_path):
    python = [sys.executable]
    spawned = ["--multiprocessing-distributed", "--nproc", 2]
    ended([start([*python, *command(data, tmp_path / "spawn", *spawned)])])
    for nodes, name in ((1, "torchrun"), (2, "torchrun of two machines")):
        torchrun = [*python, "-m", "torch.distributed.run", "--nproc-per-node", str(2 // nodes)]
        torchrun += ["--nnodes", str(nodes), "--master-addr", "127.0.0.1"]
        torchrun += ["--master-port", str(free_port()), "--node-rank"]
        ended([start([*torchrun, str(n), *command(data, tmp_path / name)]) for n in range(nodes)])
    srun = [*python, *command(data, tmp_path / "srun")]
    outputs = ended([start(srun, **srun_environment(rank)) for rank in (0, 1)])
    assert "2 epochs done" in outputs[0][0] and not outputs[1][0]  # only rank 0 prints
    machines = ["--world-size", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    by_hand = [*python, *command(data, tmp_path / "machines", *machines)]
    ended([start([*by_hand, "--rank", str(rank)]) for rank in (1, 0)])
    whole = load_checkpoint(tmp_path / "spawn")["state_dict"]
    for name in ("torchrun", "torchrun of two machines", "srun", "machines"):
        assert states_equal(load_checkpoint(tmp_path / name)["state_dict"], whole), name


def error_line(argv, **environment):
    """Return the one-line error of a process that ends with exit code 2."""
    process = start([sys.executable, *argv], **environment)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and "Traceback" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, stderr
    return lines[0]


ONE_AFTER_THE_OTHER = """
import json, os, sys
import main_moco
from trainer import cli
for argv, environment in json.loads(sys.stdin.read()):
    if os.fork() == 0:
        sys.argv = argv
        os.environ.update(environment)
        cli.run(main_moco.main, several=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print("ended:", code, file=sys.stderr, flush=True)
"""


def error_lines(*runs):
    """Return the `error_line` of each run, (argv, environment); they share the imports."""
    ran = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], cwd=REPOSITORY, input=json.dumps(runs),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    *stderrs, rest = ran.stderr.split("ended: 2\n")
    assert ran.returncode == 0 and len(stderrs) == len(runs) and not rest, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
    lines = [[line for line in stderr.splitlines() if "error:" in line] for stderr in stderrs]
    assert all(len(errors) == 1 for errors in lines), ran.stderr
    return [errors[0] for errors in lines]


def test_missing_ranks_are_named(data, tmp_path):
    def of_4(rank, url):
        machines = ["--world-size", 4, "--rank", rank, "--dist-url", url, "--dist-timeout", 2]
        return command(data, tmp_path, *machines), {}

    with socket.socket() as taken, socket.socket() as silent:
        for listener in (taken, silent):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        occupied, mute, free = (
            f"tcp://127.0.0.1:{port}"
            for port in (taken.getsockname()[1], silent.getsockname()[1], free_port())
        )
        nowhere = "tcp://no-such-host.invalid:10001"
        of_2 = ["--world-size", 2, "--rank", 1, "--dist-url", mute, "--dist-timeout", 1]
        lines = error_lines(
            of_4(0, free),
            of_4(1, free),
            of_4(1, nowhere),
            of_4(0, occupied),
            (command(data, tmp_path, *of_2), {}),
            (command(data, tmp_path, "--dist-timeout", 2), srun_environment(0)),
        )
    expected = [
        f"error: missing ranks 1, 2, 3 of 4 at {free} after 2 s",
        f"rank 1 of 4 cannot reach the others at {free}, which rank 0 opens",
        f"rank 1 of 4 cannot reach the others at {nowhere}",
        f"rank 0 of 4 cannot reach the others at {occupied}",
        f"rank 1 of 2 cannot reach the others at {mute}",  # it listens, but does not answer
        "error: missing ranks 1 of 2 at file:///",
    ]
    for part, line in zip(expected, lines):
        assert part in line
    assert not (tmp_path / "checkpoint.pth.tar").exists()


@pytest.mark.slow
def test_all_present_ranks_report_the_missing(data, tmp_path):
    machines = ["--world-size", 4, "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--rank"]
    argv = [sys.executable, *command(data, tmp_path, "--dist-timeout", 10, *machines)]
    both = [start([*argv, str(rank)]) for rank in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2] and "Traceback" not in str(errors)
    assert "missing ranks 2, 3 of 4" in errors[0] and "missing ranks" in errors[1]
    assert "frame #" not in str(errors)  # torch's stack trace of a lost connection


def test_interrupted_while_it_waits(data, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = ["--world-size", 2, "--rank", 0, "--dist-url", url]
    # A background shell has SIGINT ignored, which children would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start([sys.executable, *command(data, tmp_path, *machines)])
    signal.signal(signal.SIGINT, before)
    while not is_open(url):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr


def is_open(url):
    host, _, port = url.removeprefix("tcp://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_an_error_while_stopping_is_told():
    """After a signal the disk is full: the checkpoint was not saved, and the message says so."""
    errors = torch.multiprocessing.get_context("spawn").SimpleQueue()
    assert launch._cause([143, 143], [15], errors).started
    errors.put((2, f"{launch.LOST_CONNECTION} (closed); {launch.RERUN}"))
    assert launch._cause([143, 2], [15], errors).signum == 15
    for line in (f"{launch.LOST_CONNECTION} (closed)", "No space left on device"):
        errors.put((2, line))
    cause = launch._cause([2, 2], [15], errors)
    assert isinstance(cause, InputError) and "No space left" in str(cause)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_ended_while_its_processes_start(data, tmp_path, signum):
    """A terminal sends Ctrl-C to all processes."""
    several = ["--multiprocessing-distributed", "--nproc", 2]
    for attempt in range(3):  # on a busy machine the signal may come after the start
        run = tmp_path / f"run{attempt}"
        process = start([sys.executable, *command(data, run, *several)])
        children = ["pgrep", "-P", str(process.pid), "-f", "spawn_main"]
        while len(subprocess.run(children, capture_output=True).stdout.split()) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(0.2)
        if signum == signal.SIGINT:
            for child in subprocess.run(children, capture_output=True).stdout.split():
                os.kill(int(child), signum)
        process.send_signal(signum)
        stderr = process.communicate(timeout=60)[1]
        if not run.exists():
            break
    assert process.returncode == 128 + signum and not run.exists()
    assert stderr.startswith(f"stopped by {signum.name} while starting processes")
    assert len(stderr.splitlines()) == 1


HUGE = ["--moco-k", 8 * 10**12]


def test_out_of_memory(data, tmp_path, capsys, monkeypatch):
    _, *argv = command(data, tmp_path, *HUGE)
    error = refused(capsys, monkeypatch, "main_moco", *argv)
    assert "out of memory (tried to allocate 4096" in error


@pytest.mark.slow
def test_out_of_memory_in_two_processes(data, tmp_path):
    several = ["--multiprocessing-distributed", "--nproc", 2]
    error = error_line(command(data, tmp_path, *HUGE, *several))
    assert "out of memory (tried to allocate 4096" in error


@pytest.mark.slow
def test_ranks_with_different_files_are_refused(data, tmp_path):
    """They would resume from different states."""
    name, *argv = command(data, tmp_path / "0")
    call(name.removesuffix(".py"), *argv)
    machines = ["--world-size", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--epochs", 4]
    both = [
        start([sys.executable, *command(data, tmp_path / f"{rank}", *machines, "--rank", rank)])
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert all("see different files in" in error for error in errors)


@pytest.mark.slow
def test_a_lost_rank_ends_the_others(data, tmp_path):
    argv = [sys.executable, *command(data, tmp_path, "--epochs", 10_000)]
    first, second = (start(argv, **srun_environment(rank)) for rank in (0, 1))
    while not (tmp_path / "log.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second.kill()
    stderr = first.communicate(timeout=60)[1]
    assert first.returncode == 2 and "Traceback" not in stderr
    assert "main_moco.py: error: lost connection to another rank (" in stderr
    assert "rerun the same command to resume" in stderr
    second.communicate()


def test_single_process_script_refuses_several(chain, data, tmp_path, capsys, monkeypatch):
    for name, value in srun_environment(1).items():
        monkeypatch.setenv(name, value)
    argv = [data, "--resume", chain.pretrained, "--output", tmp_path]
    line = refused(capsys, monkeypatch, "test", *argv)
    assert "test.py: error: srun started 2 processes" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, expected", [("cuda:1", "cuda:1"), ("cpu", None)])
def test_nccl_is_told_its_device(monkeypatch, name, expected):
    def init(backend, device_id, **_):
        assert backend == ("nccl" if expected else "gloo")
        raise InputError(f"device {device_id}")

    monkeypatch.setattr(launch, "pick_device", lambda *_: torch.device(name))
    monkeypatch.setattr(launch, "_rendezvous", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", init)
    plan = Plan("auto", None, "auto", 1.0, url="tcp://127.0.0.1:1")
    with pytest.raises(InputError, match=f"device {expected}"):
        launch._join(0, plan, print, ())
