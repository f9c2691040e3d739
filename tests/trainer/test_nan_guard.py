"""A non-finite loss or weight ends the run and is never saved."""

import pytest
import torch

import main_moco
from common.errors import InputError
from conftest import TINY, call, shell
from datasets import open_dataset
from moco.checkpoint import load_checkpoint

TOO_HIGH = ["--epochs", 3, "--lr", 1e30]


def ids_named(error, data):
    return {i for i in open_dataset(data).base.ids if i in str(error)}


@pytest.mark.parametrize("look_every", [1, 3, 1000])
def test_step_and_images_are_named(data, tmp_path, look_every):
    with pytest.raises(InputError, match="epoch 1, step 2: loss is nan for images") as e:
        call("main_moco", data, "--model_path", tmp_path, *TINY, *TOO_HIGH, "-p", look_every)
    assert len(ids_named(e.value, data)) == 8  # the batch
    assert f"checkpoint is {tmp_path / 'checkpoint.pth.tar'};" in str(e.value)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint["epoch"] == 0 and checkpoint["part"] is None  # the untrained encoder


@pytest.mark.parametrize("after", [2, 4])
def test_non_finite_weights_are_not_saved(data, tmp_path, monkeypatch, after):
    """Although the loss is finite, within an epoch and at its end."""
    steps, original = [], main_moco.step

    def step(model, views, rows, epoch):
        statistics = original(model, views, rows, epoch)
        steps.append(rows)
        if len(steps) == after:  # an infinite gradient, but a finite loss
            weight = model.query_encoder.head.weight
            statistics["loss"] = statistics["loss"] + (weight - weight.detach()).sum() * 1e30 * 1e30
        return statistics

    monkeypatch.setattr("conftest.load_script", lambda name: main_moco)
    monkeypatch.setattr(main_moco, "step", step)
    with pytest.raises(InputError, match=f"step {after}: non-finite weights: query_encoder"):
        call("main_moco", data, "--model_path", tmp_path, *TINY, "--save-minutes", 1e-9)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint["part"] or {"steps": 0})["steps"] == after - 1


@pytest.mark.slow
def test_all_processes_stop_with_one_line(data, tmp_path):
    several = ["--multiprocessing-distributed", "--nproc", 2]
    result = shell("main_moco", data, "--model_path", tmp_path, *TINY, *TOO_HIGH, *several)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if "rror" in line]
    assert len(lines) == 1 and "main_moco.py: error: epoch 1, step 2: loss is" in lines[0]
    assert len(ids_named(lines[0], data)) == 8 and "Traceback" not in result.stderr
    assert "Warning" not in result.stderr


def test_operation_is_named(data, tmp_path):
    flags = [*TINY, *TOO_HIGH, "--detect-anomaly"]
    with pytest.raises(InputError, match="step 2: NaN for images .*: Function '.*Backward"):
        call("main_moco", data, "--model_path", tmp_path, *flags)
    assert not torch.is_anomaly_enabled()
    with pytest.raises(InputError, match=f"checkpoint is {tmp_path}"):
        call("main_moco", data, "--model_path", tmp_path, *flags)
