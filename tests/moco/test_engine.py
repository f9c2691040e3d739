"""The loop: order of images, schedule, log, checkpoints, resuming."""

import json
import math

import pytest
import torch

from conftest import TINY, call, free_url
from datasets.files import InputError
from moco import distributed
from moco.checkpoint import load_checkpoint
from moco.engine import EpochBatches, RunLog, contrast_accuracy, learning_rate


def test_batches_cover_a_shuffled_epoch():
    batches = EpochBatches(images=37, batch_size=8, seed=0)
    batches.epoch = 3
    found = list(batches)
    rows = [row for batch in found for _, row in batch]
    assert len(found) == len(batches) == 4 and all(len(batch) == 8 for batch in found)
    assert {epoch for batch in found for epoch, _ in batch} == {3}
    assert len(set(rows)) == 32 and set(rows) <= set(range(37)) and rows != sorted(rows)
    assert list(batches) == found
    batches.epoch = 4
    assert [row for batch in batches for _, row in batch] != rows


def test_processes_share_each_batch(monkeypatch):
    alone = list(EpochBatches(images=37, batch_size=8, seed=0))
    shares = []
    for rank in range(4):
        monkeypatch.setattr("moco.engine.world_size", lambda: 4)
        monkeypatch.setattr("moco.engine.rank", lambda rank=rank: rank)
        shares.append(list(EpochBatches(images=37, batch_size=8, seed=0)))
    assert [sum(parts, []) for parts in zip(*shares)] == alone


def test_learning_rate():
    rates = [learning_rate(0.03, epoch, 200, [120, 160], cos=False) for epoch in range(200)]
    assert rates[0] == rates[119] == 0.03
    assert rates[120] == rates[159] == pytest.approx(0.003)
    assert rates[160] == rates[199] == pytest.approx(0.0003)
    cosine = [learning_rate(0.03, epoch, 200, [120, 160], cos=True) for epoch in range(200)]
    assert cosine[0] == 0.03 and cosine[100] == pytest.approx(0.015) and cosine[199] < 1e-5


def test_contrast_accuracy():
    logits = torch.tensor([[9.0, *range(8)], [3.5, *range(8)], [2.5, *range(8)], [0.0, *range(8)]])
    found = contrast_accuracy(logits)
    assert found["acc1"] == 0.25 and found["acc5"] == 0.5


def test_contrast_accuracy_of_a_collapsed_encoder():
    """Equal logits are no success: ties count against the positive."""
    assert contrast_accuracy(torch.zeros(4, 9)) == {"acc1": 0, "acc5": 0}


def test_log_is_appended_unless_overwritten(tmp_path):
    for overwrite, lines in ((False, 2), (False, 4), (True, 2)):
        log = RunLog(tmp_path, {"command": "x"}, overwrite)
        log.epoch(1, {"loss": 2.0})
        found = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert len(found) == lines and found[-1] == {"epoch": 1, "loss": 2.0}


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("moco.engine.is_main", lambda: False)
    RunLog(tmp_path / "run", {"command": "x"}).epoch(1, {"loss": 2.0})
    assert not (tmp_path / "run").exists()


def test_log_of_a_run(chain):
    about, *lines = map(json.loads, (chain.pretrained / "log.jsonl").read_text().splitlines())
    assert about["made_by"]["command"].startswith("main_moco.py")
    assert about["args"]["epochs"] == 2
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert all(0 < line["knn_balanced"] <= 1 for line in lines)
    for line in lines[1:]:
        assert 0 < line["loss"] < 2 * math.log(33)
        assert {"acc1", "acc5", "lr", "seconds", "images_per_second"} <= line.keys()
    assert list((chain.pretrained / "tensorboard").iterdir())


def states_equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_resumed_is_as_never_stopped(data, chain, tmp_path):
    call("main_moco", data, "--model_path", tmp_path, *TINY, "--epochs", 1)
    call("main_moco", data, "--model_path", tmp_path, *TINY, "--epochs", 2, "--resume", tmp_path)
    call("main_moco", data, "--model_path", tmp_path / "whole", *TINY, "--epochs", 2)
    resumed, whole = (load_checkpoint(tmp_path / folder) for folder in (".", "whole"))
    assert resumed["epoch"] == whole["epoch"] == 2
    assert states_equal(resumed["state_dict"], whole["state_dict"])
    # Resuming what is finished changes nothing.
    call("main_moco", data, "--model_path", tmp_path, *TINY, "--epochs", 2, "--resume", tmp_path)
    assert states_equal(load_checkpoint(tmp_path)["state_dict"], whole["state_dict"])


def test_two_processes_train_as_one(data, tmp_path):
    call("main_moco", data, "--model_path", tmp_path / "1", *TINY, "--epochs", 1)
    call(
        "main_moco", data, "--model_path", tmp_path / "2", *TINY, "--epochs", 1,
        "--multiprocessing-distributed", "--nproc", 2, "--dist-url", free_url(),
    )  # fmt: skip
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines()[-1] for n in "12"]
    one, two = map(json.loads, logs)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    one, two = (load_checkpoint(tmp_path / n)["state_dict"] for n in "12")
    torch.testing.assert_close(two["queue"], one["queue"], rtol=1e-2, atol=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path):
    with pytest.raises(InputError, match="the loss is nan.*checkpoint of the epoch before"):
        call("main_moco", data, "--model_path", tmp_path, *TINY, "--epochs", 3, "--lr", 1e30)
    state = load_checkpoint(tmp_path)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert distributed.world_size() == 1
