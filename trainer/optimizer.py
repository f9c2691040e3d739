"""Optimizers, their state in checkpoints, and the learning rate."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def sgd(model: nn.Module, lr: float, momentum: float, wd: float) -> torch.optim.SGD:
    """Return fused SGD over the trainable parameters of `model`."""
    trained = [theta for theta in model.parameters() if theta.requires_grad]
    return torch.optim.SGD(trained, lr, momentum=momentum, weight_decay=wd, fused=True)


def adam(model: nn.Module, lr: float, momentum: float, wd: float) -> torch.optim.Adam:
    """Return fused Adam, with β1 = `momentum`, over the trainable parameters of `model`."""
    trained = [theta for theta in model.parameters() if theta.requires_grad]
    return torch.optim.Adam(trained, lr, (momentum, 0.999), weight_decay=wd, fused=True)


def learning_rate(lr: float, epoch: int, epochs: int, schedule: Sequence[int], cos: bool) -> float:
    """Return `lr` divided by 10 at each epoch in `schedule`, or on a half cosine to 0 (MoCo v2)."""
    if cos:
        return lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return lr * 0.1 ** sum(epoch >= milestone for milestone in schedule)


def load_moments(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Restore SGD's momentum or Adam's moments, not the settings. Raises ValueError if shapes
    differ from the weights' or values are non-finite."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["state"]})
    is_adam = isinstance(optimizer, torch.optim.Adam)
    names = ("exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",)
    for theta, state in optimizer.state.items():
        moments = [state[name] for name in names]
        if any(x.shape != theta.shape or not x.isfinite().all() for x in moments):
            raise ValueError("momentum with wrong shapes or non-finite values")
