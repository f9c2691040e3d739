"""Detect non-finite losses and weights before they are saved or loaded."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError, listed
from datasets.images import ImageSet

from .distributed import all_max, gather_objects


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with NaN or Inf."""
    return [
        name for name, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]  # fmt: skip


class NanGuard:
    """Collects the losses of steps and checks them every `interval` steps, as reading a value
    waits for the device.

    `images` are those that the rows index; messages name `checkpoint` as the last good one.
    """

    def __init__(self, images: ImageSet, checkpoint: Path, interval: int):
        self.images, self.checkpoint, self.interval = images, checkpoint, interval
        self.recent: list[tuple[int, Tensor, Tensor]] = []  # step, rows, loss

    def begin(self, step: int, rows: Tensor) -> None:
        """Record which step is being taken."""
        self.current = step, rows

    def note(self, loss: Tensor) -> None:
        """Record the loss of the current step."""
        self.recent.append((*self.current, loss.detach()))

    @property
    def due(self) -> bool:
        """Return whether a check is due."""
        return len(self.recent) >= self.interval

    def check(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Raise InputError on all ranks if on any of them a loss since the last check, or one of
        the `weights`, is non-finite."""
        problem = ""
        losses = torch.stack([loss for _, _, loss in self.recent])
        if bad := (~losses.isfinite()).nonzero().flatten().tolist():
            step, rows, loss = self.recent[bad[0]]
            problem = f"step {step + 1}: loss is {loss.item()} for images {self._ids(rows)}"
        elif names := not_finite(weights):
            last = self.recent[-1][0] + 1
            problem = f"step {last}: non-finite weights: {listed(names, 3)}"
        self.recent.clear()
        if all_max(bool(problem)):
            problems = listed(filter(None, gather_objects(problem)))
            raise InputError(
                f"epoch {epoch + 1}, {problems}; the last good checkpoint is {self.checkpoint}; "
                "start again with a lower --lr and --overwrite, or find the operation with "
                "--detect-anomaly"
            )

    @contextlib.contextmanager
    def detecting_anomalies(self, on: bool, epoch: int) -> Iterator[None]:
        """If `on`, raise InputError with the step and the operation that produces a NaN within the
        block."""
        try:
            with torch.autograd.set_detect_anomaly(on):
                yield
        except RuntimeError as error:
            if not (on and "nan values" in str(error)):
                raise
            step, rows = self.current
            raise InputError(
                f"epoch {epoch + 1}, step {step + 1}: NaN for images {self._ids(rows)}: {error}; "
                f"the last good checkpoint is {self.checkpoint}"
            ) from error

    def _ids(self, rows: Tensor) -> str:
        return listed((self.images.ids[row] for row in rows.tolist()), limit=100)
