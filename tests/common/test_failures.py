"""Any error as one line."""

import errno
import re
import sys
from pathlib import Path

import pytest
import torch

from common import failures
from common.errors import InputError
from common.failures import explain, one_line, outcome, tracebacks_to
from conftest import REPOSITORY, load_script
from datasets import synthetic


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "_folder", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


DIED = "DataLoader worker (pid 7) is killed by signal: "
SHM = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"


@pytest.mark.parametrize(
    "error, parts",
    [
        (RuntimeError(SHM), ["/dev/shm", "--workers 0", "--shm-size"]),
        (RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n  x\n{SHM}\n"),
         ["--shm-size"]),
        (RuntimeError(DIED + "Bus error. It is possible that dataloader's workers are out of shared"
                      " memory. Please try to raise your shared memory limit."), ["--shm-size"]),
        (RuntimeError("NCCL error\nError while creating shared memory segment /dev/shm/nccl-x"),
         ["--shm-size"]),
        (RuntimeError("unable to write to file </torch_9_1>: No space left (28)"), ["--shm-size"]),
        (RuntimeError(DIED + "Killed. "), ["killed", "--workers 0", "resume"]),
        (RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"), ["--workers 0"]),
        (OSError(errno.EMFILE, "Too many open files"), ["ulimit -n", "--workers 0"]),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."),
         ["ulimit -n"]),
        (RuntimeError("received 0 items of ancdata"), ["ulimit -n"]),
        (RuntimeError("can't start new thread"), ["ulimit -u"]),
        (MemoryError("Unable to allocate 9. GiB"), ["out of memory (Unable to allocate 9", "-b"]),
        (MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most "
                     "recent call last):\n  x\nMemoryError: a.png: tried to allocate 9 bytes\n"),
         ["out of memory (a.png: tried to allocate 9 bytes)"]),
        (MemoryError(), ["out of memory (MemoryError)"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
         ["out of memory (tried to allocate 2.00 gib)"]),
    ],
)  # fmt: skip
def test_failures_of_the_machine_are_explained(error, parts):
    code, line = outcome(error)
    assert code == 2 and "\n" not in line and all(part in line for part in parts), line


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a defect"), ValueError("Too many open files"), InputError("shared memory(shm)"),
     FileNotFoundError(2, "No such file", "/dev/shm/images"), OSError(errno.ENOSPC, "No space")],
)  # fmt: skip
def test_others_are_not(error):
    assert explain(error) is None


def test_invalid_input_and_the_systems_errors():
    assert outcome(InputError("no such\nflag")) == (2, "no such flag")
    code, line = outcome(FileNotFoundError(2, "No such file", "x"))
    assert code == 2 and line == "[Errno 2] No such file: 'x'"
    text = "Caught OSError in DataLoader worker process 0.\nTraceback\nOSError: [Errno 5] x: 'y'"
    assert outcome(OSError(text)) == (2, "[Errno 5] x: 'y'")


def raised(error):
    try:
        raise error
    except Exception as found:
        return found


@pytest.mark.parametrize("where", ["run", "missing"])
def test_the_traceback_of_an_unexpected_error(folder, where):
    """In the run's folder or, as long as that does not exist, in the temporary one."""
    (folder / "run").mkdir()
    tracebacks_to(folder / where)
    code, line = outcome(raised(KeyError("näme")))
    path = Path(re.search(r"unexpected KeyError: 'näme'; its traceback is in (.*)", line)[1])
    assert code == 1 and path.parent == (folder / "run" if where == "run" else folder)
    text = path.read_text(encoding="utf-8")
    assert "in raised" in text and text.endswith("KeyError: 'näme'\n") and "torch: " in text
    assert str(path) not in outcome(raised(KeyError("x")))[1]  # another file


def test_a_traceback_that_cannot_be_written(folder, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(folder / "missing"))
    code, line = outcome(raised(KeyError("x")))
    assert code == 1 and "above" in line and "in raised" in capsys.readouterr().err


def test_one_line(capsys):
    for error, code, line in (
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (InputError("bad"), 2, "it: error: bad\n"),
        (ZeroDivisionError(), 1, "it: error: unexpected ZeroDivisionError; its traceback is in"),
    ):
        with pytest.raises(SystemExit) as stop, one_line("it"):
            raise error
        stderr = capsys.readouterr().err
        assert stop.value.code == code and stderr.startswith(line) and stderr.count("\n") == 1


def test_every_command_ends_in_one_line(folder, monkeypatch, capsys):
    from trainer import cli

    def main():
        raise AttributeError("'NoneType' object has no attribute 'x'")

    monkeypatch.setattr(sys, "argv", ["main_moco.py", "DATA"])
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    stderr = capsys.readouterr().err
    assert stop.value.code == 1 and stderr.count("\n") == 1
    assert stderr.startswith("main_moco.py: error: unexpected AttributeError: 'NoneType' object")
    assert "command: main_moco.py DATA\n" in next(folder.glob("traceback-*")).read_text("utf-8")


def test_every_entry_point_ends_in_one_line():
    files = [file for file in load_script("scripts/draw_imports").tracked(REPOSITORY)
             if file.name != "draw_imports.py"]  # needs no other package  # fmt: skip
    starts = {}
    for file in files:
        _, entry, block = (REPOSITORY / file).read_text("utf-8").partition('__name__ == "__main__"')
        if entry:
            starts[str(file)] = block
    assert len(starts) > 15
    for file, block in starts.items():
        assert "cli.run(main" in block or file == "datasets/synthetic.py", file


def test_synthetic_images_on_a_full_disk(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x.jpg")

    monkeypatch.setattr("datasets.synthetic.make", fail)
    monkeypatch.setattr(sys, "argv", ["synthetic", str(tmp_path / "data")])
    with pytest.raises(SystemExit) as stop:
        synthetic.main()
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err == "synthetic: error: [Errno 28] No space left on device: 'x.jpg'\n"
    )
