"""Provenance of files."""

from trainer import provenance as module
from trainer.provenance import provenance


def test_provenance_is_plain():
    record = provenance()
    assert {"command", "commit", "torch", "date"} <= record.keys()
    assert all(value is None or isinstance(value, str) for value in record.values())


def test_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert provenance()["commit"] is None
    monkeypatch.setenv("GIT_COMMIT", "0123456789ab")
    assert provenance()["commit"] == "0123456789ab"
