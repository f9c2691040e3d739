"""A run's log."""

import json
import math

from trainer.log import RunLog


def test_log_is_appended_unless_overwritten(tmp_path):
    """An epoch that was logged but not saved is replaced when it is trained again."""
    for overwrite, done, lines in ((False, 0, 2), (False, 0, 3), (False, 1, 5), (True, 0, 2)):
        log = RunLog(tmp_path, {"command": "x"}, overwrite, done)
        log.epoch(1, {"loss": 2.0})
        logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert len(logged) == lines and logged[-1] == {"epoch": 1, "loss": 2.0}


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.log.is_main", lambda: False)
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
