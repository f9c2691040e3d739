"""What a file says of how it was made."""

from trainer.provenance import provenance


def test_provenance_is_plain():
    found = provenance()
    assert {"command", "commit", "torch", "date"} <= found.keys()
    assert all(value is None or isinstance(value, str) for value in found.values())
