"""A run's log."""

import json
import math
import sys

import pytest

from trainer.log import RunLog


def test_log_is_appended_unless_overwritten(tmp_path):
    """An epoch that was logged but not saved is replaced when it is trained again."""
    for overwrite, done, lines in ((False, 0, 2), (False, 0, 3), (False, 1, 5), (True, 0, 2)):
        log = RunLog(tmp_path, {"command": "x"}, overwrite, done)
        log.epoch(1, {"loss": 2.0})
        logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert len(logged) == lines and logged[-1] == {"epoch": 1, "loss": 2.0}


@pytest.mark.parametrize("broken", [b'{"epoch": 2, "lo\xff\xfe', b"\0\0\0\0", b"3", b"[1]"])
def test_a_broken_line_is_dropped(tmp_path, broken):
    (tmp_path / "log.jsonl").write_bytes(b'{"command": "x"}\n{"epoch": 1}\n' + broken)
    RunLog(tmp_path, {"command": "y"}, done=1)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == [{"command": "x"}, {"epoch": 1}, {"command": "y"}]


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


BROKEN = {
    "to import": "raise TypeError('Descriptors cannot be created directly')",
    "too old": "",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_tensorboard(how, tmp_path, capsys, monkeypatch):
    """Training goes on without curves."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text(BROKEN[how])
    for name in [n for n in sys.modules if "tensorboard" in n.split(".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    RunLog(tmp_path / "run", {"command": "x"}).epoch(1, {"loss": 2.0})
    note, epoch = capsys.readouterr().out.splitlines()
    assert note.startswith("note: going on without TensorBoard") and epoch.startswith("epoch 1")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_tensorboard_that_breaks_later(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, {"command": "x"})

    class Full:
        def add_scalar(self, *_):
            raise AttributeError("no scalars")

    log.board = Full()
    for epoch in (1, 2):
        log.epoch(epoch, {"loss": 2.0})
    out = capsys.readouterr().out
    assert out.count("going on without TensorBoard curves: AttributeError: no scalars") == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
