"""The page of results has the tables of the files beside it, and they say what was measured."""

import json

import pytest

from benchmarks import accuracy, tables
from conftest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = (RESULTS / "README.md").read_text()


@pytest.mark.parametrize("path", RESULTS.glob("throughput-*.json"), ids=lambda path: path.stem)
def test_throughput(path):
    result = json.loads(path.read_text())
    assert tables.speeds(result, tables.TASKS) in PAGE
    assert tables.parts(result, "a") in PAGE


def test_scaling():
    result = json.loads((RESULTS / "scaling-processes.json").read_text())
    assert tables.processes_table(result) in PAGE
    result = json.loads((RESULTS / "scaling-images.json").read_text())
    assert tables.images_table(result) in PAGE


def test_accuracy():
    assert accuracy.summary(accuracy.read_runs(RESULTS / "accuracy.jsonl")) in PAGE


def test_commits():
    for path in RESULTS.glob("*.json*"):
        lines = path.suffix == ".jsonl"
        origin = (accuracy.read_runs(path)[0] if lines else json.loads(path.read_text()))["made_by"]
        where = f"{origin['machine']}, torch {origin['torch']}"
        assert f"`{path.name}`: commit {origin['commit']}, {origin['date'][:10]}, {where}" in PAGE


def test_tables_of_one_task():
    step = {"ms_per_image": [4.0, 5.0], "memory_gb": 1.5, "profile": {"ReLU": 0.5}}
    modes = {"plain": step, "default": {"ms_per_image": [2.0, 2.0], "memory_gb": 1}}
    result = {"flop_per_image": 10**9, "tasks": {"a": modes}}
    lines = tables.speeds(result, ["a"]).splitlines()
    assert lines[2] == "| stage (a), step only | plain | 4.50 | 0.889 | 1.50 |  |"
    assert lines[3] == "| stage (a), step only | default | 2.00 | 2.000 | 1.00 | 2.25 (2.00–2.50) |"
    assert tables.parts(result, "a").splitlines()[-1] == "| ReLU | 2.25 |"
