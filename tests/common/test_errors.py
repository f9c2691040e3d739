"""Error messages."""

from common.errors import InputError, listed


def test_listed():
    assert listed("abc") == "a, b, c"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_worker_error_keeps_its_last_line():
    error = InputError("Caught InputError in worker.\nTraceback\n  x\nfiles.InputError: it broke\n")
    assert str(error) == "it broke"
    assert str(InputError("plain")) == "plain"
    assert str(InputError("a name\nin two lines")) == "a name in two lines"
