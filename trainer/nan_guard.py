"""Numbers that are none are found before they are saved or read, and told with what made them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError, listed
from datasets.images import ImageSet

from .distributed import agreed, gather_objects

Step = tuple[int, Tensor, Tensor]  # number in its epoch, rows of its images, loss


def not_finite(weights: dict[str, Tensor]) -> list[str]:
    """Which of these have values that are no finite numbers."""
    return [
        name for name, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]  # fmt: skip


def require_finite(
    recent: list[Step],
    weights: dict[str, Tensor],
    images: ImageSet,
    epoch: int,
    checkpoint: Path,
) -> None:
    """Raise InputError, in all processes, if in one of them a loss of the `recent` steps or one of
    the `weights` is no finite number; `checkpoint` is what was saved last. Empties `recent`."""
    complaint = ""
    losses = torch.stack([loss for _, _, loss in recent])
    if bad := (~losses.isfinite()).nonzero().flatten().tolist():
        complaint = _told(recent[bad[0]], images)
    elif odd := not_finite(weights):
        complaint = f"step {recent[-1][0] + 1}: weights are no finite numbers: {listed(odd, 3)}"
    recent.clear()
    if agreed(bool(complaint)):
        complaints = listed(filter(None, gather_objects(complaint)))
        raise InputError(
            f"epoch {epoch + 1}, {complaints}; the last good checkpoint is {checkpoint}; a lower "
            "--lr may help, and --detect-anomaly tells more"
        )


@contextlib.contextmanager
def anomalies_told(
    on: bool, recent: list[Step], images: ImageSet, epoch: int, checkpoint: Path
) -> Iterator[None]:
    """If `on`, have torch look for what makes numbers that are none in the block, and raise what it
    finds as InputError, with the last of the `recent` steps and `checkpoint`, saved last."""
    try:
        with torch.autograd.set_detect_anomaly(on):
            yield
    except RuntimeError as error:
        if not (on and "nan values" in str(error)):
            raise
        raise InputError(
            f"epoch {epoch + 1}, {_told(recent[-1], images)}: {error}; the last good checkpoint is "
            f"{checkpoint}"
        ) from error


def _told(step: Step, images: ImageSet) -> str:
    number, rows, loss = step
    ids = listed((images.ids[row] for row in rows.tolist()), limit=100)
    return f"step {number + 1}: the loss of the images {ids} is {loss.item()}"
