"""Optional packages that are missing or broken."""

import sys

import pytest

from common.errors import InputError
from common.packages import required


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package that is installed but raises an error of any kind."""
    (tmp_path / "brittle").mkdir()
    (tmp_path / "brittle" / "__init__.py").write_text("raise TypeError('of another version')")
    (tmp_path / "lacking.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)


def test_required(broken):
    assert required("json", "json", "this needs") is sys.modules["json"]
    with pytest.raises(InputError, match="^this needs no_such_package: pip install no_such_pack"):
        required("no_such_package", "no_such_package", "this needs")
    with pytest.raises(InputError, match="this needs brittle, .*broken: TypeError: of another"):
        required("brittle", "brittle", "this needs")
    with pytest.raises(InputError, match="this needs lacking, .*broken: .*'no_such_package'"):
        required("lacking", "lacking", "this needs")
