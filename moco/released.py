"""Checkpoints of the authors' released code in this project's terms, so that they can be scored."""

import re
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError
from models import build_encoder
from models.resnet12 import ANNEALING_STEPS

from .config import IMAGE_SIZE, Pretraining

# Their names of the parts, and ours; DistributedDataParallel puts a prefix before them.
NAMES = (
    (r"^module\.", ""),
    (r"^encoder_q\.", "query_encoder."),
    (r"^encoder_k\.", "key_encoder."),
    (r"encoder\.layer(\d)\.0\.", lambda found: f"encoder.backbone.blocks.{int(found[1]) - 1}."),
    (r"\.downsample\.", ".shortcut."),
    (r"encoder\.(classifier|fc)\.", "encoder.head."),
    (r"^queue_ptr$", "queue_position"),
    (r"^layer\.1\.", "classifier.linear."),  # in the classifier's own file
)


def is_released(checkpoint: object) -> bool:
    """Is this what their `save_checkpoint` wrote of an encoder pair?"""
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    return isinstance(weights, dict) and any("encoder_q." in str(name) for name in weights)


def from_released(checkpoint: dict, classifier: dict | None, path: Path) -> dict:
    """Their checkpoint, read from `path`, as `save_checkpoint` would have it: stage (d) if there is
    the `classifier` of their other file, else stage (a).

    Its settings are the papers' where the weights do not tell, and "tells" names those that they
    do; its task and images are not known. Raises InputError for a backbone other than their
    resnet12.
    """
    if checkpoint.get("arch") != "resnet12":
        raise InputError(
            f"{path} is of the authors' code, with --arch {checkpoint.get('arch')}; only its "
            "resnet12 can be read"
        )
    weights = _renamed(checkpoint["state_dict"])
    if classifier:
        weights |= _renamed(classifier["state_dict"])
    weights["queue"] = weights["queue"].T.contiguous()  # theirs is D×L
    weights["queue_position"] = weights["queue_position"].reshape(())
    for name in ("query_encoder", "key_encoder"):
        for block in (2, 3):  # they do not keep how far DropBlock's rate has risen
            weights[f"{name}.backbone.blocks.{block}.drop.steps"] = torch.tensor(ANNEALING_STEPS)
    settings = Pretraining.complete({"image_size": IMAGE_SIZE})
    told = {
        "arch": "resnet12",
        "moco_k": len(weights["queue"]),
        "moco_dim": weights["queue"].shape[1],
        "mlp": "query_encoder.head.0.weight" in weights,
    }
    settings |= {"amp": False, "views_by": "pil", **told}  # they computed in 32 bits
    return {
        "stage": "distill" if classifier else "moco",
        "epoch": checkpoint.get("epoch"),
        "args": settings | ({"p_label": True, "losses": "con+cls"} if classifier else {}),
        "base": {"dataset": "a set that it does not tell", "counts": {}, "sha256": "unknown"},
        "task": None,
        "made_by": {"command": "unknown, of the authors' released code"},
        "tells": tuple(told),
        "state_dict": weights,
        "optimizer": {"state": {} if classifier else _momentum(checkpoint, weights, told)},
    }


def _momentum(checkpoint: dict, weights: dict[str, Tensor], told: dict) -> dict[int, dict]:
    """The state of their SGD, as ours numbers it: by the trained weights in the encoder's order.

    Theirs numbers all parameters in the order of its state_dict, which has buffers in between.
    """
    state = (checkpoint.get("optimizer") or {}).get("state", {})
    buffers = ("running_mean", "running_var", "num_batches_tracked", "queue", "queue_position")
    theirs = [name for name in weights if not name.endswith((*buffers, ".steps"))]
    momentum = {name: state[number] for number, name in enumerate(theirs) if number in state}
    with torch.device("meta"):
        encoder = build_encoder(told["arch"], told["moco_dim"], told["mlp"])
    ours = (f"query_encoder.{name}" for name, _ in encoder.named_parameters())
    return {n: momentum[name] for n, name in enumerate(ours) if name in momentum}


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed
