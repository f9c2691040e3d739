"""Provenance of files."""

from trainer.provenance import provenance


def test_provenance_is_plain():
    record = provenance()
    assert {"command", "commit", "torch", "date"} <= record.keys()
    assert all(value is None or isinstance(value, str) for value in record.values())
