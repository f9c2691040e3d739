"""scripts/gpu_session.sh, as far as it can be tested in seconds without a GPU."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from conftest import REPOSITORY
from models import build_encoder

SCRIPT = ["bash", "scripts/gpu_session.sh"]


def session(*words: str, **environment: object) -> subprocess.CompletedProcess:
    """Run the script in small sizes on the CPU."""
    defaults = {"OMP_NUM_THREADS": "1", "DEVICE": "cpu", "TINY": "1", "PYTHON": sys.executable}
    given = {name: str(value) for name, value in environment.items()}
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 1800}
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
    """The table fails, as its folder is a file."""
    folders["STATE"].mkdir()
    (folders["STATE"] / "tables").touch()
    for name in ("resnet12", "scores", "encoder"):
        (folders["STATE"] / f"{name}.done").touch()
    folders["DATA"].mkdir()
    result = session("2", **folders)
    assert result.returncode == 1
    assert "table: FAILED with exit code 2" in result.stdout
    assert (
        "encoder: already done" in result.stdout and not (folders["STATE"] / "table.done").exists()
    )
    with tarfile.open(folders["OUT"] / "logs-2.tar.gz") as logs:
        assert "./logs/table.log" in logs.getnames()


def test_call_2_needs_images(folders):
    result = session("2", **folders)
    assert result.returncode == 2 and "set DATA" in result.stdout


@pytest.mark.slow
def test_from_beginning_to_end(folders, smears):
    """Both calls in small sizes, with all that they leave in OUT."""
    for call in "12":
        result = session(call, **{**folders, "DATA": smears, "BUDGET": 1500})
        assert result.returncode == 0, result.stdout
        out = folders["OUT"]
        found = {path.name for path in out.iterdir()}
        assert f"summary-{call}.txt" in found and f"logs-{call}.tar.gz" in found
        if call == "1":
            assert {"versions.json", "tests.log", "trace.json.gz", "trace.txt"} < found
            speed = json.loads((out / "throughput.json").read_text())["speed-a-16"]
            assert set(speed["tasks"]["a"]) == {"plain", "default"}
        else:
            assert {"table5.md", "results.tar.gz", "encoder.pt.aa"} < found
            parts = sorted(out.glob("encoder.pt.*"))
            (out / "whole").write_bytes(b"".join(path.read_bytes() for path in parts))
            state = torch.load(out / "whole", weights_only=True)
            build_encoder("conv4").load_state_dict(state)
        shutil.rmtree(out)


def test_ceilings_and_trace(tmp_path):
    for flags in (["versions", tmp_path / "versions.json"], ["trace", tmp_path / "trace"]):
        args = gpu.parser().parse_args([*map(str, flags), "--device", "cpu", "--tiny"])
        args.function(args)
    found = json.loads((tmp_path / "versions.json").read_text())
    assert found["made_by"]["torch"] == torch.__version__
    assert min(found["ceilings"].values()) > 0
    assert (tmp_path / "trace" / "trace.json.gz").stat().st_size < gpu.MAX_TRACE_BYTES
    assert "convolution" in (tmp_path / "trace" / "trace.txt").read_text()
