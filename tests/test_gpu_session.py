"""scripts/gpu_session.sh, as far as it can be tested in seconds without a GPU."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from conftest import REPOSITORY

SCRIPT = ["bash", "scripts/gpu_session.sh"]


def session(*words: str, **environment: object) -> subprocess.CompletedProcess:
    """Run the script in small sizes on the CPU."""
    defaults = {"OMP_NUM_THREADS": "1", "DEVICE": "cpu", "TINY": "1", "PYTHON": sys.executable}
    given = {name: str(value) for name, value in environment.items()}
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run([*SCRIPT, *words], env={**os.environ, **defaults, **given}, **options)


def test_list():
    subprocess.run(["bash", "-n", *SCRIPT[1:]], cwd=REPOSITORY, check=True)
    lines = session("--list", TINY="").stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"1", "2"}
    names = [line.split()[1] for line in lines]
    assert names[:2] == ["versions", "tests"] and "table" in names and "resnet12" in names
    assert sum(int(line.split()[2]) for line in lines if line.startswith("2")) <= 600
    usage = session()
    assert usage.returncode == 2 and "in two calls" in usage.stdout


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return {"OUT": tmp_path / "out", "STATE": tmp_path / "state", "DATA": tmp_path / "nowhere"}


def test_finished_steps_are_skipped(folders):
    folders["STATE"].mkdir()
    for name in ("versions", "tests", "trace", "compile-d-16"):
        (folders["STATE"] / f"{name}.done").touch()
    (folders["STATE"] / "speed-a-16.json").write_text('{"tasks": {}}')
    result = session("1", BUDGET=5, **folders)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already done") == 4
    assert "speed-a-16: no time left" in result.stdout
    assert json.loads((folders["OUT"] / "throughput.json").read_text()) == {
        "speed-a-16": {"tasks": {}}
    }
    assert "versions: already done" in (folders["OUT"] / "summary-1.txt").read_text()


def test_other_steps_run_after_a_failure(folders):
    """The data folder exists; the table fails, as its folder is a file."""
    folders["STATE"].mkdir()
    (folders["STATE"] / "tables").touch()
    for name in ("resnet12", "scores", "encoder"):
        (folders["STATE"] / f"{name}.done").touch()
    folders["DATA"].mkdir()
    result = session("2", **folders)
    assert result.returncode == 1
    assert "data: done" in result.stdout and "table: FAILED with exit code 2" in result.stdout
    assert (
        "encoder: already done" in result.stdout and not (folders["STATE"] / "table.done").exists()
    )
    with tarfile.open(folders["OUT"] / "logs-2.tar.gz") as logs:
        assert "./logs/table.log" in logs.getnames()


def test_ceilings_and_trace(tmp_path):
    for flags in (["versions", tmp_path / "versions.json"], ["trace", tmp_path / "trace"]):
        args = gpu.parser().parse_args([*map(str, flags), "--device", "cpu", "--tiny"])
        args.function(args)
    found = json.loads((tmp_path / "versions.json").read_text())
    assert found["made_by"]["torch"] == torch.__version__
    assert min(found["ceilings"].values()) > 0
    assert (tmp_path / "trace" / "trace.json.gz").stat().st_size < gpu.MAX_TRACE_BYTES
    assert "convolution" in (tmp_path / "trace" / "trace.txt").read_text()
