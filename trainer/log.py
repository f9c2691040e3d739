"""A run's log: `log.jsonl`, and TensorBoard curves."""

import contextlib
import json
import shutil
from pathlib import Path

from tqdm import tqdm

from common.files import atomic_write

from .distributed import is_main

LOG = "log.jsonl"


class RunLog:
    """Writes `log.jsonl`, one line describing the run and one per epoch, and TensorBoard curves if
    it is installed; on rank 0 only. `done` is the number of epochs done before."""

    def __init__(self, folder: Path, about: dict, overwrite: bool = False, done: int = 0):
        self.path = folder / LOG
        self.board = None
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self.path.unlink(missing_ok=True)
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            self._truncate(done)
            self._write(about)
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    def _truncate(self, done: int) -> None:
        """Drop incomplete lines and epochs after `done`, which were logged but not saved and are
        trained again."""
        if not self.path.exists():
            return
        lines = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                if json.loads(line).get("epoch", 0) <= done:
                    lines.append(line + "\n")
        with atomic_write(self.path) as file:
            file.write("".join(lines).encode())

    def _write(self, values: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def epoch(self, done: int, values: dict[str, float]) -> None:
        """Log and print the values of epoch number `done`, counted from 1."""
        if not is_main():
            return
        self._write({"epoch": done, **values})
        tqdm.write(f"epoch {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, done)
            self.board.flush()
