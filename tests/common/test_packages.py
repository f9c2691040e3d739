"""Optional packages that are missing or broken."""

import sys

import pytest

from common.errors import InputError
from common.packages import optional, required


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package that is installed but raises an error of any kind."""
    (tmp_path / "brittle").mkdir()
    (tmp_path / "brittle" / "__init__.py").write_text("raise TypeError('of another version')")
    (tmp_path / "lacking.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)


def test_optional(broken, capsys):
    assert optional("json", "json") is sys.modules["json"]
    assert optional("no_such_package.part", "no_such_package") is None
    assert capsys.readouterr().out == ""
    assert optional("brittle", "brittle") is None and optional("lacking", "lacking") is None
    first, second = capsys.readouterr().out.splitlines()
    assert "brittle" in first and "TypeError: of another version" in first
    assert "lacking" in second and "no_such_package" in second


def test_required(broken):
    assert required("json", "json", "this needs") is sys.modules["json"]
    with pytest.raises(InputError, match="^this needs no_such_package: pip install no_such_pack"):
        required("no_such_package", "no_such_package", "this needs")
    with pytest.raises(InputError, match="this needs brittle, .*broken: TypeError: of another"):
        required("brittle", "brittle", "this needs")
