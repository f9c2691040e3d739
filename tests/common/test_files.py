"""Atomic writes, and refusing to overwrite."""

import errno
import os
import subprocess
import sys
import time

import pytest

from common.errors import InputError
from common.files import alone_in, atomic_write, refuse_to_overwrite, write_utf8
from conftest import REPOSITORY


def test_atomic_write(tmp_path):
    path = tmp_path / "new" / "x"
    with atomic_write(path) as file:
        file.write(b"one")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"tw")
        raise RuntimeError
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_a_file_keeps_its_permissions_and_may_have_any_name(tmp_path):
    path = tmp_path / ("é" * 125 + ".csv")  # 254 of 255 bytes
    for _ in range(2):
        write_utf8(path, "x")
        path.chmod(0o600)
    write_utf8(path, "y")
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "y"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_of_another_process(tmp_path):
    """It is refused at once, and gone with the process, even if that is killed."""
    code = "import sys; from common.files import alone_in\nwith alone_in(sys.argv[1]) as alone:\n"
    code += "    print(alone, flush=True); input()"
    command = [sys.executable, "-c", code, tmp_path / "lock"]
    other = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "True\n"
        with alone_in(tmp_path / "lock") as alone:
            assert not alone
        other.kill()
    assert (tmp_path / "lock").exists()
    with alone_in(tmp_path / "lock") as alone:
        assert alone
    with alone_in(tmp_path / "lock"):
        (tmp_path / "lock").unlink()  # by somebody who tidies up
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["builtins.open", "fcntl.lockf"])
def test_where_nothing_can_be_locked(tmp_path, monkeypatch, place):
    """Another user's file, left by a kill; a file system without locks."""

    def fail(*_):
        raise PermissionError(errno.EPERM, "x") if place == "builtins.open" else OSError("x")

    monkeypatch.setattr(place, fail)
    with alone_in(tmp_path / "lock") as alone:
        assert alone
    assert not list(tmp_path.iterdir())


def test_abandoned_temporary_files_are_removed(tmp_path):
    for name, age in ((".x.1.tmp", 7200), (".x.2.tmp", 60), (".y.1.tmp", 7200)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"one")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.2.tmp", ".y.1.tmp", "x"]


def test_refuse_to_overwrite(tmp_path):
    refuse_to_overwrite([tmp_path / "x"], overwrite=False)
    (tmp_path / "x").touch()
    refuse_to_overwrite([tmp_path / "x"], overwrite=True)
    with pytest.raises(InputError, match="x would be overwritten.*--overwrite"):
        refuse_to_overwrite([tmp_path / "x"], overwrite=False)
