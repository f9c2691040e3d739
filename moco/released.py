"""Conversion of the authors' released checkpoints to this project's format."""

import re
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError
from models import build_encoder
from models.resnet12 import ANNEALING_STEPS

from .config import IMAGE_SIZE, Pretraining

# Regular expressions from their parameter names (with DistributedDataParallel's prefix) to ours.
RENAMES = (
    (r"^module\.", ""),
    (r"^encoder_q\.", "query_encoder."),
    (r"^encoder_k\.", "key_encoder."),
    (r"encoder\.layer(\d)\.0\.", lambda match: f"encoder.backbone.blocks.{int(match[1]) - 1}."),
    (r"\.downsample\.", ".shortcut."),
    (r"encoder\.(classifier|fc)\.", "encoder.head."),
    (r"^queue_ptr$", "queue_position"),
    (r"^layer\.1\.", "classifier.linear."),  # in the classifier file
)


def is_released(checkpoint: object) -> bool:
    """Return whether this is a checkpoint of an encoder pair by the authors' code."""
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    return isinstance(weights, dict) and any("encoder_q." in str(name) for name in weights)


def from_released(checkpoint: dict, classifier: dict | None, path: Path) -> dict:
    """Convert the authors' checkpoint from `path` to our format.

    Its stage is (d) if there is a `classifier`, their second file, else (a). Settings that follow
    from the weights are named in "known_settings", others are the papers'; task and images are
    unknown. Raises InputError for a backbone other than resnet12.
    """
    if checkpoint.get("arch") != "resnet12":
        raise InputError(
            f"{path}: of the authors' checkpoints only those with --arch resnet12 can be read, "
            f"got {checkpoint.get('arch')}"
        )
    weights = _renamed(checkpoint["state_dict"])
    if classifier:
        weights |= _renamed(classifier["state_dict"])
    weights["queue"] = weights["queue"].T.contiguous()  # theirs is D×L
    weights["queue_position"] = weights["queue_position"].reshape(())
    for name in ("query_encoder", "key_encoder"):
        for block in (2, 3):  # the progress of DropBlock's schedule is not in their files
            weights[f"{name}.backbone.blocks.{block}.drop.steps"] = torch.tensor(ANNEALING_STEPS)
    settings = Pretraining.complete({"image_size": IMAGE_SIZE})
    known = {
        "arch": "resnet12",
        "moco_k": len(weights["queue"]),
        "moco_dim": weights["queue"].shape[1],
        "mlp": "query_encoder.head.0.weight" in weights,
    }
    settings |= {"amp": False, "views_by": "pil", **known}  # theirs is float32
    return {
        "stage": "distill" if classifier else "moco",
        "epoch": checkpoint.get("epoch"),
        "args": settings | ({"p_label": True, "losses": "con+cls"} if classifier else {}),
        "base": {"dataset": "an unknown dataset", "counts": {}, "sha256": "unknown"},
        "task": None,
        "made_by": {"command": "unknown, of the authors' released code"},
        "known_settings": tuple(known),
        "state_dict": weights,
        "optimizer": {"state": {} if classifier else _momentum(checkpoint, weights, known)},
    }


def _momentum(checkpoint: dict, weights: dict[str, Tensor], known: dict) -> dict[int, dict]:
    """Return the state of their SGD by our indices: the query encoder's parameters, in order.

    Theirs are indices of all parameters in the order of the state_dict, without its buffers.
    """
    state = (checkpoint.get("optimizer") or {}).get("state", {})
    buffers = ("running_mean", "running_var", "num_batches_tracked", "queue", "queue_position")
    theirs = [name for name in weights if not name.endswith((*buffers, ".steps"))]
    momentum = {name: state[index] for index, name in enumerate(theirs) if index in state}
    with torch.device("meta"):
        encoder = build_encoder(known["arch"], known["moco_dim"], known["mlp"])
    ours = (f"query_encoder.{name}" for name, _ in encoder.named_parameters())
    return {index: momentum[name] for index, name in enumerate(ours) if name in momentum}


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
