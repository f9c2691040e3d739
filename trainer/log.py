"""A run's log: `log.jsonl`, and TensorBoard curves."""

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import reason
from common.files import parse_json, write_utf8

from .distributed import is_main

LOG = "log.jsonl"


class RunLog:
    """Writes `log.jsonl`, one line describing the run and one per epoch, and TensorBoard curves if
    it is installed; on rank 0 only. `done` is the number of epochs done before."""

    def __init__(self, folder: Path, about: dict, overwrite: bool = False, done: int = 0):
        self.path = folder / LOG
        self.board: Any = None
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self.path.unlink(missing_ok=True)
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            self._truncate(done)
            self._write(about)
            if importlib.util.find_spec("tensorboard"):
                with self._curves():
                    from torch.utils.tensorboard import SummaryWriter

                    self.board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    @contextlib.contextmanager
    def _curves(self) -> Iterator[None]:
        """Go on without TensorBoard curves, with a note, if the block, which writes them, fails."""
        try:
            yield
        except Exception as error:  # a broken package may raise any
            why = f"{type(error).__name__}: {reason(error)}"
            tqdm.write(f"note: going on without TensorBoard curves: {why}")
            self.board = None

    def _truncate(self, done: int) -> None:
        """Drop broken lines and epochs after `done`, which were logged but not saved and are
        trained again."""
        if not self.path.exists():
            return
        lines = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if parse_json(line, newest=0).get("epoch", 0) <= done:
                    lines.append(line + "\n")
        write_utf8(self.path, "".join(lines))

    def _write(self, values: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def epoch(self, done: int, values: dict[str, float]) -> None:
        """Log and print the values of epoch number `done`, counted from 1."""
        if not is_main():
            return
        self._write({"epoch": done, **values})
        tqdm.write(f"epoch {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if self.board:
            with self._curves():
                for name, value in values.items():
                    self.board.add_scalar(name, value, done)
                self.board.flush()
