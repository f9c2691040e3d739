"""The scripts on a GPU, as a user starts them: compiled, stopped, in NCCL's world of one, without
memory, and with checkpoints that move between a GPU and the CPU.

GPU_TESTS_ON=cpu runs what it can of this on the CPU, to test the tests.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY, shell
from moco.checkpoint import load_checkpoint

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"
)
only_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
CONV4 = ["--arch", "conv4", "--image-size", 32]
RESNET12 = ["--arch", "resnet12", "--image-size", 84]
SMALL = ["-b", 8, "--moco-k", 512, "--bn-groups", 2, "-j", 0, "--lr", 0.003]


def moco(data, folder, *more) -> list:
    """A small training of stage (a), without its device."""
    return ["main_moco", data, "--model_path", folder, *SMALL, *more]


def done(name, *argv) -> str:
    """What a script prints that ends well."""
    result = shell(name, *argv)
    assert result.returncode == 0, result.stderr
    return result.stdout


def epochs(folder: Path) -> list[dict]:
    """The lines of a run's log that are about epochs."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "epoch" in line]


def require_near(folder: Path, other: Path) -> None:
    """Assert that two runs came to about the same: rounding alone tells them apart."""
    a, b = epochs(folder), epochs(other)
    assert [line["epoch"] for line in a] == [line["epoch"] for line in b]
    assert a[-1]["loss"] == pytest.approx(b[-1]["loss"], rel=0.02)
    a, b = (load_checkpoint(path)["state_dict"] for path in (folder, other))
    for name in a:
        if name.startswith("query_encoder") and name.endswith("weight"):
            assert (a[name] - b[name]).norm() < 0.05 * b[name].norm(), name


def in_python(before: str, after: str, name, *argv) -> subprocess.CompletedProcess:
    """Run a script between two lines of Python, in a process of its own."""
    program = "\n".join([
        "import runpy, sys, torch",
        f"sys.argv = {[f'{name}.py', *map(str, argv)]!r}",
        before,
        f"runpy.run_path('{name}.py', run_name='__main__')",
        after,
    ])  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    how = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", program], timeout=300, **how)


# Compiled dropout, which conv4 does not have, draws other random numbers.
@pytest.mark.parametrize("how, off", [(CONV4, 0.02), (RESNET12, 0.1)], ids=["conv4", "resnet12"])
def test_compiled(data, tmp_path, how, off):
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        done(*moco(data, tmp_path / name, *how, "--epochs", 2, "--device", DEVICE, *more))
    plain, compiled = epochs(tmp_path / "plain"), epochs(tmp_path / "compiled")
    assert len(plain) == len(compiled) == 2
    for a, b in zip(plain, compiled):
        assert b["loss"] == pytest.approx(a["loss"], rel=off)


def test_stopped_and_resumed(data, tmp_path):
    how = [*CONV4, "--epochs", 60, "--device", DEVICE]
    done(*moco(data, tmp_path / "whole", *how))
    name, *argv = map(str, moco(data, tmp_path / "stopped", *how))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = {"cwd": REPOSITORY, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, f"{name}.py", *argv], **started) as run:
        log, until = tmp_path / "stopped" / "log.jsonl", time.monotonic() + 120
        while run.poll() is None and not (log.exists() and '"epoch": 2' in log.read_text()):
            assert time.monotonic() < until
            time.sleep(0.02)
        run.send_signal(signal.SIGTERM)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 143, said
    assert load_checkpoint(tmp_path / "stopped")["epoch"] < 60
    done(name, *argv)
    require_near(tmp_path / "stopped", tmp_path / "whole")


def test_from_gpu_to_cpu_and_back(data, tmp_path):
    a, labels, d = tmp_path / "a", tmp_path / "labels", tmp_path / "d"
    for number, device in enumerate((DEVICE, "cpu", DEVICE), start=1):
        how = [*CONV4, "--no-amp", "--views", "batch", "--epochs", number, "--device", device]
        done(*moco(data, a, *how))
    assert [line["epoch"] for line in epochs(a)] == [1, 2, 3]
    here = ["--device", DEVICE, "-j", 0]
    done("generate_pseudo", "--datadir", data, "--resume", a, "--savedir", labels, "--k_shot", 2,
         *here)  # fmt: skip
    done("main_distill", data, "--savedir", labels, "--model_path", d, "--epochs", 1, *here)
    for how in (["--resume", d, "--load_cla"], ["--resume", a, "--savedir", labels]):
        found = []
        for device in (DEVICE, "cpu"):
            out = tmp_path / f"{how[1].name}-{device}-{len(found)}"
            done("test", data, *how, "--device", device, "--no-amp", "-j", 0, "--output", out)
            found.append(rows(out))
        assert found[0].keys() == found[1].keys()
        off = [abs(x - y) for name, row in found[0].items() for x, y in zip(row, found[1][name])]
        assert max(off) < 0.01


def rows(folder: Path) -> dict[str, list[float]]:
    """Each image's probabilities, as test.py has written them."""
    (table,) = folder.glob("test_*.csv")
    with open(table, newline="") as file:
        lines = list(csv.reader(file))[1:]
    return {line[0]: list(map(float, line[3:])) for line in lines}


@pytest.mark.parametrize("by", ["torchrun", "--multiprocessing-distributed"])
def test_a_world_of_one(data, tmp_path, by):
    how = [*CONV4, "--epochs", 2, "--device", DEVICE]
    done(*moco(data, tmp_path / "alone", *how))
    name, *argv = moco(data, tmp_path / "world", *how)
    if by == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", "1", f"{name}.py", *map(str, argv)]  # fmt: skip
        result = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    else:
        backend = "nccl" if DEVICE == "cuda" else "gloo"
        done(name, *argv, by, "--nproc", 1, "--dist-backend", backend)
    require_near(tmp_path / "world", tmp_path / "alone")


@only_cuda
def test_out_of_memory_is_one_line(data, tmp_path):
    gigabyte = "1e9 / torch.cuda.get_device_properties(0).total_memory"
    _, *argv = moco(data, tmp_path, "--arch", "resnet12", "--image-size", 448, "-b", 32,
                    "--epochs", 1)  # fmt: skip
    limit = f"torch.cuda.set_per_process_memory_fraction({gigabyte})"
    result = in_python(limit, "", "main_moco", *argv)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "out of memory (tried to allocate" in result.stderr


@only_cuda
def test_the_gpu_is_used_unless_told_otherwise(data, tmp_path):
    card = torch.cuda.get_device_name(0)
    assert f"training on {card}" in done(*moco(data, tmp_path / "a", *CONV4, "--epochs", 1))
    _, *argv = moco(data, tmp_path / "b", *CONV4, "--epochs", 1, "--device", "cpu")
    result = in_python("", "print(torch.cuda.is_initialized())", "main_moco", *argv)
    assert result.returncode == 0, result.stderr
    assert "training on CPU" in result.stdout and result.stdout.endswith("False\n")
