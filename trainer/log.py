"""What a run writes down of itself: `log.jsonl`, and TensorBoard's curves."""

import contextlib
import json
import shutil
from pathlib import Path

from tqdm import tqdm

from common.files import atomic_write

from .distributed import is_main

LOG = "log.jsonl"


class RunLog:
    """`log.jsonl`: a line on what the run is, then one an epoch; TensorBoard beside it if it is
    installed. Does nothing but on rank 0. `done`: how many epochs the run that goes on has behind
    it."""

    def __init__(self, folder: Path, about: dict, overwrite: bool = False, done: int = 0):
        self.path = folder / LOG
        self.board = None
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self.path.unlink(missing_ok=True)
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            self._forget(done)
            self._write(about)
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    def _forget(self, done: int) -> None:
        """Leave out what came after `done` epochs: a run killed before it saved them has them
        again, and half a line is none."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                if json.loads(line).get("epoch", 0) <= done:
                    kept.append(line + "\n")
        with atomic_write(self.path) as file:
            file.write("".join(kept).encode())

    def _write(self, values: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def epoch(self, done: int, values: dict[str, float]) -> None:
        """Add the line of the epoch with which `done` are done, and say it on the screen."""
        if not is_main():
            return
        self._write({"epoch": done, **values})
        tqdm.write(f"epoch {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, done)
            self.board.flush()
