"""Any error as one line: failures of the machine are explained, others get a traceback file."""

import contextlib
import datetime
import io
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, out_of_memory, requested

AGAIN = "rerun the same command to resume"
KNOWN = {  # pattern in an error's text: what it means and what to do
    r"Too many open files|received 0 items of ancdata": "too many open files; raise the limit "
    f"(ulimit -n 4096) or use --workers 0, and {AGAIN}",
    r"shared memory ?(segment|object|\(shm\))|out of shared memory|file </torch_": "shared memory "
    "(/dev/shm) is too small; use --workers 0 or enlarge it (docker run --shm-size=8g), and "
    f"{AGAIN}",
    r"DataLoader worker .*(killed|exited)": "a data-loading process was killed or crashed (out of "
    f"memory?); {AGAIN}, with fewer --workers or with --workers 0",
    r"can't start new thread|[Cc]annot fork": "too many processes or threads for this machine or "
    f"account (ulimit -u); use --workers 0 and OMP_NUM_THREADS=1, and {AGAIN}",
}

_folder: Path | None = None


class Unexpected(Exception):
    """An unforeseen error of another process; the message is its line of `outcome`."""


def tracebacks_to(folder: Path) -> None:
    """Set where this process writes the traceback of an unexpected error: the folder of the
    command's output, if it exists by then, instead of the system's temporary folder."""
    global _folder
    _folder = folder


def print_any_name() -> None:
    """Let this process print names that the terminal cannot show, or that are not UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def explain(error: BaseException) -> str | None:
    """Return one line that says what a failure of the machine means and what to do: too little
    memory, shared memory, files or processes, or a data-loading process that was killed. None for
    any other error."""
    if not isinstance(error, MemoryError | OSError | RuntimeError) or isinstance(error, InputError):
        return None
    if out_of_memory(error):
        detail = requested(error)
        if isinstance(error, MemoryError):  # it may name a file, at the end if another process did
            detail = " ".join(str(error).rpartition("MemoryError: ")[2].split()) or detail
        return (
            f"out of memory ({detail}); {AGAIN} once memory is free; or reduce -b or, in training, "
            "--image-size, for which a run that has begun starts again (--overwrite)"
        )
    lines = [line for pattern, line in KNOWN.items() if re.search(pattern, str(error))]
    return lines[0] if lines else None


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """End the command `name` with one line if the block raises an error (see `outcome`), and with
    exit code 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        code, line = outcome(error)
        print(f"{name}: error: {line}", file=sys.stderr)
        sys.exit(code)


def outcome(error: Exception) -> tuple[int, str]:
    """Return the exit code and the line for an error that ends a command.

    2 for invalid input, a system's error (full disk) or one that `explain` knows; 1 for any other,
    whose traceback is written to a file that the line names.
    """
    if line := explain(error):
        return 2, line
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, Unexpected):
        return 1, str(error)
    text = str(error).strip()
    if text.startswith("Caught "):  # in a data-loading process: its traceback
        text = text.splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError):
        return 2, " ".join(text.splitlines())
    first = (text.splitlines() or [""])[0][:500]
    line = f"unexpected {type(error).__name__}{': ' * bool(first)}{first}"
    return 1, f"{line}; {_written(error)}"


def _written(error: Exception) -> str:
    """Write the traceback of `error` to a file and return where."""
    now = datetime.datetime.now(datetime.timezone.utc)
    about = {
        "command": shlex.join(sys.argv),
        "date": now.isoformat(timespec="seconds"),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": getattr(sys.modules.get("torch"), "__version__", "not imported"),
    }
    text = "".join(f"{name}: {value}\n" for name, value in about.items()) + "\n"
    text += "".join(traceback.format_exception(error))
    prefix = f"traceback-{now:%Y%m%d-%H%M%S}-{os.getpid()}-"
    for folder in filter(None, (_folder, Path(tempfile.gettempdir()))):
        try:
            descriptor, path = tempfile.mkstemp(".txt", prefix, folder)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:  # missing folder, full disk
            continue
        return f"its traceback is in {path}"
    print(text, file=sys.stderr)
    return "its traceback is above, as it could not be written to a file"
