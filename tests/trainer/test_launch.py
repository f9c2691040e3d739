"""Processes started in each of the ways that there are, and those that do not find each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import REPOSITORY, TINY, call, refused, states_equal
from moco.checkpoint import load_checkpoint


def command(data, folder, *more):
    words = ["main_moco.py", data, "--model_path", folder, *TINY, "--epochs", 2, *more]
    return [str(word) for word in words]


def start(words, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    how = {"cwd": REPOSITORY, "env": environment, "text": True}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def srun_variables(rank, of=2):
    """What srun says to each of the tasks on one machine."""
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
    found = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), found
    return found


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
    said = ended([start(srun, **srun_variables(rank)) for rank in (0, 1)])
    assert "2 epochs done" in said[0][0] and not said[1][0]  # one speaks for both
    machines = ["--world-size", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    by_hand = [*python, *command(data, tmp_path / "machines", *machines)]
    ended([start([*by_hand, "--rank", str(rank)]) for rank in (1, 0)])
    whole = load_checkpoint(tmp_path / "spawn")["state_dict"]
    for name in ("torchrun", "torchrun of two machines", "srun", "machines"):
        assert states_equal(load_checkpoint(tmp_path / name)["state_dict"], whole), name


def complaint(words, **environment):
    """The one line on which a process ends, with exit code 2."""
    process = start([sys.executable, *words], **environment)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and "Traceback" not in said, said
    lines = [line for line in said.splitlines() if "error:" in line]
    assert len(lines) == 1, said
    return lines[0]


ONE_AFTER_THE_OTHER = """
import json, os, sys
import main_moco
from trainer import cli
for words, environment in json.loads(sys.stdin.read()):
    if os.fork() == 0:
        sys.argv = words
        os.environ.update(environment)
        cli.run(main_moco.main, several=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print("ended:", code, file=sys.stderr, flush=True)
"""


def complaints(*runs):
    """The `complaint` of each of the runs, (words, environment); what they import, they share."""
    ran = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], cwd=REPOSITORY, input=json.dumps(runs),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    *found, rest = ran.stderr.split("ended: 2\n")
    assert ran.returncode == 0 and len(found) == len(runs) and not rest, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
    lines = [[line for line in said.splitlines() if "error:" in line] for said in found]
    assert all(len(errors) == 1 for errors in lines), ran.stderr
    return [errors[0] for errors in lines]


def test_those_that_do_not_come_are_named(data, tmp_path):
    def of_4(rank, url):
        machines = ["--world-size", 4, "--rank", rank, "--dist-url", url, "--dist-timeout", 2]
        return command(data, tmp_path, *machines), {}

    with socket.socket() as taken, socket.socket() as silent:
        for there in (taken, silent):
            there.bind(("127.0.0.1", 0))
            there.listen()
        occupied, mute, free = (
            f"tcp://127.0.0.1:{port}"
            for port in (taken.getsockname()[1], silent.getsockname()[1], free_port())
        )
        nowhere = "tcp://no-such-host.invalid:10001"
        of_2 = ["--world-size", 2, "--rank", 1, "--dist-url", mute, "--dist-timeout", 1]
        lines = complaints(
            of_4(0, free),
            of_4(1, free),
            of_4(1, nowhere),
            of_4(0, occupied),
            (command(data, tmp_path, *of_2), {}),
            (command(data, tmp_path, "--dist-timeout", 2), srun_variables(0)),
        )
    said = [
        f"error: of 4 processes 1, 2, 3 did not come to {free} within 2 s",
        f"process 1 of 4 cannot reach the others at {free}, which process 0 op",
        f"process 1 of 4 cannot reach the others at {nowhere}",
        f"process 0 of 4 cannot reach the others at {occupied}",
        f"process 1 of 2 cannot reach the others at {mute}",  # it is there, but does not answer
        "error: of 2 processes 1 did not come to file:///",
    ]
    for part, line in zip(said, lines):
        assert part in line
    assert not (tmp_path / "checkpoint.pth.tar").exists()


@pytest.mark.slow
def test_all_that_came_are_told(data, tmp_path):
    machines = ["--world-size", 4, "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--rank"]
    words = [sys.executable, *command(data, tmp_path, "--dist-timeout", 10, *machines)]
    both = [start([*words, str(rank)]) for rank in (0, 1)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2] and "Traceback" not in str(said)
    assert "of 4 processes 2, 3 did not come" in said[0]
    assert "did not come" in said[1] or "process 0, which has left, names those" in said[1]
    assert "frame #" not in str(said)  # of torch's, about a connection that is lost


def test_interrupted_while_it_waits(data, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = ["--world-size", 2, "--rank", 0, "--dist-url", url]
    # What is begun with & would hand on that it ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start([sys.executable, *command(data, tmp_path, *machines)])
    signal.signal(signal.SIGINT, before)
    while not is_open(url):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said


def is_open(url):
    host, _, port = url.removeprefix("tcp://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_ended_while_its_processes_start(data, tmp_path, how):
    """A terminal sends Ctrl-C to all of them."""
    several = ["--multiprocessing-distributed", "--nproc", 2]
    process = start([sys.executable, *command(data, tmp_path / "run", *several)])
    children = ["pgrep", "-P", str(process.pid), "-f", "spawn_main"]
    while len(subprocess.run(children, capture_output=True).stdout.split()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    if how == signal.SIGINT:
        for child in subprocess.run(children, capture_output=True).stdout.split():
            os.kill(int(child), how)
    process.send_signal(how)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + how and not (tmp_path / "run").exists()
    assert said.startswith(f"stopped by {how.name} while its processes started; the same command")
    assert len(said.splitlines()) == 1


HUGE = ["--moco-k", 8 * 10**12]


def test_too_little_memory(data, tmp_path, capsys, monkeypatch):
    _, *words = command(data, tmp_path, *HUGE)
    said = refused(capsys, monkeypatch, "main_moco", *words)
    assert "too little memory (tried to allocate 4096" in said


@pytest.mark.slow
def test_too_little_memory_for_two(data, tmp_path):
    several = ["--multiprocessing-distributed", "--nproc", 2]
    said = complaint(command(data, tmp_path, *HUGE, *several))
    assert "too little memory (tried to allocate 4096" in said


@pytest.mark.slow
def test_those_that_see_other_files_are_refused(data, tmp_path):
    """Each would go on from where it thinks that all are."""
    name, *words = command(data, tmp_path / "0")
    call(name.removesuffix(".py"), *words)
    machines = ["--world-size", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--epochs", 4]
    both = [
        start([sys.executable, *command(data, tmp_path / f"{rank}", *machines, "--rank", rank)])
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert all("different arguments or data, or see different files" in line for line in said)


@pytest.mark.slow
def test_one_that_is_lost_ends_the_others(data, tmp_path):
    words = [sys.executable, *command(data, tmp_path, "--epochs", 10_000)]
    first, second = (start(words, **srun_variables(rank)) for rank in (0, 1))
    while not (tmp_path / "log.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second.kill()
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 2 and "Traceback" not in said
    assert "main_moco.py: error: cannot talk to the other processes, or lost one (" in said
    assert "the same command goes on from the last checkpoint" in said
    second.communicate()


def test_what_is_one_process_is_not_several(chain, data, tmp_path, capsys, monkeypatch):
    for name, value in srun_variables(1).items():
        monkeypatch.setenv(name, value)
    words = [data, "--resume", chain.pretrained, "--output", tmp_path]
    line = refused(capsys, monkeypatch, "test", *words)
    assert "test.py: error: srun has started 2 of it; it is one process" in line
    assert not list(tmp_path.iterdir())
