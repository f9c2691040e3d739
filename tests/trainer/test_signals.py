"""A run stopped anywhere resumes with the same command and ends bit for bit the same."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from common.errors import InputError
from conftest import REPOSITORY, TINY, call, states_equal
from moco.checkpoint import load_checkpoint
from trainer import signals
from trainer.checkpoint import CHECKPOINT, PREVIOUS
from trainer.signals import SAVE, Stopped, Watch


def moco(data, folder, *more):
    return ["main_moco", data, "--model_path", folder, *TINY, "--epochs", 3, *more]


def student(data, labels, folder):
    correction = ["--correction", "dic", "--dic-interval", 1, "--dic-gamma", 0.5]
    return ["main_distill", data, "--savedir", labels, "--model_path", folder, "-j", 0, *correction,
            "--epochs", 3]  # fmt: skip


def stopping(monkeypatch, *actions):
    """Have the run's Watch return each of `actions` in turn, one a step, and CONTINUE after."""
    left = list(actions)
    monkeypatch.setattr(Watch, "action", lambda self: left.pop(0) if left else 0)


TERM = signal.SIGTERM
STOPS = {  # the actions of each step, with 4 batches an epoch
    "first step": [TERM],
    "middle": [0, 0, TERM],
    "end of an epoch": [0, 0, 0, TERM],
    "second epoch": [0, 0, 0, 0, 0, TERM],
}


@pytest.mark.parametrize("when", STOPS)
@pytest.mark.parametrize("stage", ["moco", "distill"])
def test_stopped_at_any_step(chain, data, tmp_path, monkeypatch, stage, when):
    def command(folder):
        if stage == "moco":
            return moco(data, folder)
        return student(data, chain.labels, folder)

    call(*command(tmp_path / "whole"))
    stopping(monkeypatch, *STOPS[when])
    with pytest.raises(Stopped) as stop:
        call(*command(tmp_path / "stopped"))
    assert stop.value.exit_code == 143
    half = load_checkpoint(tmp_path / "stopped")
    looks = len(STOPS[when])
    assert half["epoch"] == looks // 4
    assert (half["part"] is None) if looks == 4 else (half["part"]["steps"] == looks % 4)
    call(*command(tmp_path / "stopped"))
    resumed, whole = (load_checkpoint(tmp_path / name) for name in ("stopped", "whole"))
    assert resumed["epoch"] == 3 and states_equal(resumed["state_dict"], whole["state_dict"])
    for a, b in zip(*(c["optimizer"]["state"].values() for c in (resumed, whole))):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    logs = []
    for name in ("stopped", "whole"):
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        skip = {"seconds", "images_per_second"}
        logs.append([{k: v for k, v in x.items() if k not in skip} for x in lines if "epoch" in x])
    assert logs[0] == logs[1]


@pytest.mark.parametrize("flags", [["-j", 1], ["--views", "batch"], ["--amp"]])
def test_any_kind_of_views(data, tmp_path, monkeypatch, flags):
    call(*moco(data, tmp_path / "whole", *flags))
    for steps in (2, 3):  # twice in a row, the second time in another epoch
        stopping(monkeypatch, *[0] * steps, TERM)
        with pytest.raises(Stopped):
            call(*moco(data, tmp_path / "stopped", *flags))
    stopping(monkeypatch)
    call(*moco(data, tmp_path / "stopped", *flags))
    resumed, whole = (load_checkpoint(tmp_path / name) for name in ("stopped", "whole"))
    assert states_equal(resumed["state_dict"], whole["state_dict"])


def test_newest_checkpoint_is_damaged(data, tmp_path, monkeypatch, capsys):
    """The run resumes from the previous one, which the next save does not replace."""
    call(*moco(data, tmp_path / "whole"))
    stopping(monkeypatch, 0, SAVE, TERM)
    with pytest.raises(Stopped):
        call(*moco(data, tmp_path / "run"))
    newest, before = tmp_path / "run" / CHECKPOINT, tmp_path / "run" / PREVIOUS
    assert load_checkpoint(newest)["part"]["steps"] == 3
    assert load_checkpoint(before)["part"]["steps"] == 2
    newest.write_bytes(newest.read_bytes()[:5000])
    (tmp_path / "run" / f".{CHECKPOINT}.1.tmp").write_bytes(b"half a checkpoint")
    kept = before.read_bytes()
    stopping(monkeypatch, TERM)
    with pytest.raises(Stopped):
        call(*moco(data, tmp_path / "run"))
    assert "falling back to the previous checkpoint" in capsys.readouterr().out
    assert before.read_bytes() == kept and load_checkpoint(newest)["part"]["steps"] == 3
    call(*moco(data, tmp_path / "run"))
    assert not list((tmp_path / "run").glob(".*"))
    resumed, whole = (load_checkpoint(tmp_path / name) for name in ("run", "whole"))
    assert states_equal(resumed["state_dict"], whole["state_dict"])


def test_full_disk(data, tmp_path, monkeypatch):
    """The checkpoint before remains, and no temporary file."""
    stopping(monkeypatch, SAVE, SAVE)
    whole_save, saved = torch.save, []

    def save(contents, file):
        if len(saved) == 2:
            file.write(b"x" * 1000)
            raise OSError(28, "No space left on device")
        saved.append(contents)
        whole_save(contents, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        call(*moco(data, tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run")["part"]["steps"] == 1
    assert not list((tmp_path / "run").glob(".*"))


def start(argv):
    command = [sys.executable, f"{argv[0]}.py", *map(str, argv[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("timed out")


@pytest.mark.parametrize(
    "name, code",
    [
        ("SIGTERM", 143),
        pytest.param("SIGUSR1", 138, marks=pytest.mark.slow),
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
    ],
)
def test_signals_of_a_real_run(data, tmp_path, name, code):
    process = start(moco(data, tmp_path, "--epochs", 10_000))
    wait_for((tmp_path / "log.jsonl").exists, process)
    time.sleep(1)
    process.send_signal(getattr(signal, name))
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert f"stopped by {name} after saving" in stderr and "rerun the same command" in stderr
    assert "Traceback" not in stderr and load_checkpoint(tmp_path)["epoch"] >= 0


def saved_since(folder, nanoseconds):
    path = folder / CHECKPOINT
    return path.exists() and path.stat().st_mtime_ns > nanoseconds


@pytest.mark.slow
def test_two_processes_stop_and_resume(data, tmp_path):
    """First the parent alone gets a signal; then one of its processes is killed."""

    def command(folder):
        return moco(data, folder, "--epochs", 24, "--multiprocessing-distributed", "--nproc", 2,
                    "--save-minutes", 0.005)  # fmt: skip

    folder, codes = tmp_path / "run", []
    for what in ("term", "kill"):
        process = start(command(folder))
        started = time.time_ns()
        wait_for(lambda since=started: saved_since(folder, since), process)
        if what == "term":
            process.terminate()
        else:
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            ).stdout.split()
            os.kill(int(children[-1]), signal.SIGKILL)
        stderr = process.communicate(timeout=60)[1]
        codes.append(process.returncode)
        assert "Traceback" not in stderr, stderr
    assert codes == [143, 2] and "rerun the same command to resume" in stderr
    for name in ("run", "whole"):
        assert start(command(tmp_path / name)).wait(timeout=300) == 0
    resumed, whole = (load_checkpoint(tmp_path / name) for name in ("run", "whole"))
    assert resumed["epoch"] == 24 and states_equal(resumed["state_dict"], whole["state_dict"])


def test_requeued_job_resumes_despite_overwrite(data, tmp_path, monkeypatch, capsys):
    """It resumes its own run, but overwrites that of another job."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    call(*moco(data, tmp_path, "--overwrite"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    call(*moco(data, tmp_path, "--overwrite"))
    assert "3 epochs already done" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    call(*moco(data, tmp_path, "--overwrite"))
    assert "already done" not in capsys.readouterr().out


def test_rerun_with_resume_flag(chain, data, tmp_path, monkeypatch, capsys):
    """A requeued command resumes from its own checkpoint, not from that of --resume."""
    argv = moco(data, tmp_path, "--resume", chain.pretrained, "--start-epoch", 0)
    monkeypatch.setattr(sys, "argv", ["main_moco.py", "one"])
    stopping(monkeypatch, 0, 0, 0, 0, TERM)
    with pytest.raises(Stopped):
        call(*argv)
    call(*argv)
    assert "from epoch 2 of 3, after step 1" in capsys.readouterr().out
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
    call(*argv)
    assert "3 epochs already done" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["main_moco.py", "another"])
    with pytest.raises(InputError, match="already holds a run"):
        call(*argv)


@pytest.mark.slow
def test_resuming_within_an_epoch_needs_as_many_processes(data, tmp_path, monkeypatch):
    stopping(monkeypatch, TERM)
    with pytest.raises(Stopped):
        call(*moco(data, tmp_path))
    two = ["--multiprocessing-distributed", "--nproc", 2]
    with pytest.raises(InputError, match="by 1 process, not 2;"):
        call(*moco(data, tmp_path, *two))


def test_second_ctrl_c_ends_at_once(monkeypatch):
    """But not the same one, from the terminal and forwarded by the parent."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    watch = Watch(0, lambda number: number)
    watch.note(signal.SIGINT, None)
    watch.note(signal.SIGINT, None)
    assert watch.action() == signal.SIGINT
    now[0] += 2
    with pytest.raises(KeyboardInterrupt):
        watch.note(signal.SIGINT, None)


def test_time_to_save(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    watch, never = Watch(2, lambda number: number), Watch(0, lambda number: number)
    actions = []
    for now[0] in (0, 119, 121, 122, 240, 242):
        actions.append(watch.action())
        assert never.action() == 0
    assert actions == [0, 0, SAVE, 0, 0, SAVE]
    assert Watch(0, lambda number: max(number, TERM)).action() == TERM  # another rank's signal


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with signals.handling(Watch(0, lambda number: number).note):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
