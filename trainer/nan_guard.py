"""Losses and weights that are not finite are found before they are saved or read."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError, listed
from datasets.images import ImageSet

from .distributed import agreed, gather_objects


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Which of these have values that are not finite."""
    return [
        name for name, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]  # fmt: skip


class NanGuard:
    """Keeps the losses of the steps since it last looked at them: every `interval` steps, since
    looking waits for the device.

    `images`: what the steps' rows are of; `checkpoint`: what a message calls the last good one.
    """

    def __init__(self, images: ImageSet, checkpoint: Path, interval: int):
        self.images, self.checkpoint, self.interval = images, checkpoint, interval
        self.recent: list[tuple[int, Tensor, Tensor]] = []  # number in the epoch, rows, loss

    def note(self, step: int, rows: Tensor, loss: Tensor) -> None:
        """Remember a step, before its gradients are computed."""
        self.recent.append((step, rows, loss.detach()))

    @property
    def due(self) -> bool:
        """Whether it is time to look."""
        return len(self.recent) >= self.interval

    def check(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Raise InputError, on all ranks, if on one of them a loss since the last look, or one of
        the `weights`, is not finite."""
        complaint = ""
        losses = torch.stack([loss for _, _, loss in self.recent])
        if bad := (~losses.isfinite()).nonzero().flatten().tolist():
            complaint = self._about(bad[0])
        elif odd := not_finite(weights):
            last = self.recent[-1][0] + 1
            complaint = f"step {last}: weights are no finite numbers: {listed(odd, 3)}"
        self.recent.clear()
        if agreed(bool(complaint)):
            complaints = listed(filter(None, gather_objects(complaint)))
            raise InputError(
                f"epoch {epoch + 1}, {complaints}; the last good checkpoint is {self.checkpoint}; "
                "a lower --lr may help, and --detect-anomaly tells more"
            )

    @contextlib.contextmanager
    def detecting_anomalies(self, on: bool, epoch: int) -> Iterator[None]:
        """If `on`, have torch look for the operation that makes a NaN in the block, and raise
        InputError with it and the step."""
        try:
            with torch.autograd.set_detect_anomaly(on):
                yield
        except RuntimeError as error:
            if not (on and "nan values" in str(error)):
                raise
            raise InputError(
                f"epoch {epoch + 1}, {self._about(-1)}: {error}; the last good checkpoint is "
                f"{self.checkpoint}"
            ) from error

    def _about(self, index: int) -> str:
        step, rows, loss = self.recent[index]
        ids = listed((self.images.ids[row] for row in rows.tolist()), limit=100)
        return f"step {step + 1}: the loss of the images {ids} is {loss.item()}"
