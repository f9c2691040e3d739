"""What a checkpoint of this method holds, and the networks that are in it."""

from pathlib import Path

import torch
from torch import nn

from common.errors import InputError, listed
from common.files import atomic_write
from datasets.episode import Task
from datasets.images import require_fingerprint
from models import Encoder, LinearClassifier, build_encoder
from trainer.checkpoint import load, read, remove_unfinished, save, torch_save
from trainer.nan_guard import not_finite

from .config import STAGES
from .released import from_released, is_released

CLASSIFIER = "checkpointClassifier.pth.tar"
FORMAT = 1
CONTENTS = ("stage", "epoch", "args", "base", "task", "made_by", "state_dict", "optimizer")
F_C, BIAS = "classifier.linear.weight", "classifier.linear.bias"


def save_checkpoint(folder: Path, contents: dict) -> None:
    """Write `contents` to `folder`, and the classifier's weights by themselves if it has one.

    `contents`, all of CONTENTS: the stage, epochs done, arguments, fingerprint of the base set,
    task (or None), what made it, and the weights and optimizer's state; "part" says where in an
    epoch it is. No gradient scaler: bfloat16 has the range of 32 bits. The classifier's own file is
    for other code; everything here reads the checkpoint.
    """
    remove_unfinished(folder, CLASSIFIER)
    if contents["task"]:  # first: a run that is killed after it is not done, and writes it again
        about = {key: contents[key] for key in ("epoch", "task", "made_by")}
        weights = _part(contents["state_dict"], "classifier.")
        with atomic_write(folder / CLASSIFIER) as file:
            torch_save({"format": FORMAT, **about, "state_dict": weights}, file)
    save(folder, {"format": FORMAT, **contents})


def load_checkpoint(path: str | Path, stages: tuple[str, ...] | None = None) -> dict:
    """The checkpoint at `path`, a file or a run's folder, on the CPU. Where a folder's latest is
    missing or broken, the one before it, with a note. Settings that are newer than the file have
    their defaults.

    Raises InputError if there is none, or it is unreadable, or of none of `stages`. Runs no code
    from it.
    """
    checkpoint = load(path, _checked)
    if stages is not None:
        require_stage(checkpoint, stages, path)
    return checkpoint


def require_stage(checkpoint: dict, stages: tuple[str, ...], path: str | Path) -> None:
    """Raise InputError if a checkpoint, read from `path`, is of none of `stages`."""
    if checkpoint["stage"] not in stages:
        raise InputError(
            f"{path} is a checkpoint of {STAGES[checkpoint['stage']].title}; "
            f"needed is one of {' or '.join(STAGES[stage].title for stage in stages)}"
        )


def _checked(checkpoint: object, path: Path) -> dict:
    """Return `checkpoint`, read from `path`, if it is sound; the authors' in our terms."""
    if is_released(checkpoint):
        # Theirs are checkpoint.pth.tar or checkpoint_0190.pth.tar; the classifier's likewise.
        beside = path.with_name(path.name.replace("checkpoint", "checkpointClassifier", 1))
        classifier = read(beside) if beside != path and beside.exists() else None
        checkpoint = from_released(checkpoint, classifier, path)
    if not isinstance(checkpoint, dict) or checkpoint.get("stage") not in list(STAGES):
        raise InputError(f"{path} is not a checkpoint of this project's scripts")
    if checkpoint.get("format", 0) > FORMAT:
        raise InputError(
            f"{path} has format {checkpoint['format']}, newer than this code's {FORMAT}"
        )
    if lacking := [name for name in CONTENTS if name not in checkpoint]:
        raise InputError(f"{path} is not a whole checkpoint: it lacks {listed(lacking)}")
    _check(checkpoint)
    return checkpoint


def _check(checkpoint: dict) -> None:
    """Raises ValueError, or what wrong types lead to, if parts are not what they should be: among
    them weights that are not those which the settings ask for, or no numbers."""
    kinds = {"epoch": int, "args": dict, "made_by": dict, "state_dict": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(checkpoint[name], kind)]:
        raise ValueError(f"of a wrong type: {listed(wrong)}")
    part = checkpoint.get("part")
    if part and not (type(part["steps"]) is int and isinstance(part["processes"], list)):
        raise ValueError("it does not say where in an epoch it is")
    stage = STAGES[checkpoint["stage"]]
    needed = ["arch", "epochs", "image_size", "aug_plus"]
    needed += ["p_label", "losses"] if checkpoint["stage"] == "distill" else []
    if lacking := [name for name in needed if checkpoint["args"].get(name) is None]:
        raise ValueError(f"its settings lack {listed(lacking)}")
    checkpoint["args"] |= stage.settings.complete(checkpoint["args"])
    if stage.classifies and F_C not in checkpoint["state_dict"]:
        raise ValueError(f"its weights lack {F_C}")
    require_fingerprint(checkpoint["base"])
    if checkpoint["task"] is not None:
        Task.from_dict(checkpoint["task"])
    with torch.device("meta"):  # shapes alone
        encoder = _encoder(checkpoint)
    asked = {f"query_encoder.{name}": x.shape for name, x in encoder.state_dict().items()}
    if (f_c := checkpoint["state_dict"].get(F_C)) is not None:
        classes = len(checkpoint["task"]["classes"]) if checkpoint["task"] else len(f_c)
        asked |= {F_C: (classes, encoder.out_features), BIAS: (classes,)}
    found = {name: x.shape for name, x in checkpoint["state_dict"].items()}
    if wrong := [name for name, shape in asked.items() if found.get(name) != shape]:
        raise ValueError(f"its weights are not those of its settings: {listed(wrong, 3)}")
    if odd := not_finite(checkpoint["state_dict"]):
        raise ValueError(f"not all finite numbers: {listed(odd, 3)}")


def _part(state_dict: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def _load(module: nn.Module, state_dict: dict, prefix: str) -> nn.Module:
    module.load_state_dict(_part(state_dict, prefix))
    return module.eval().requires_grad_(False)


def _encoder(checkpoint: dict) -> Encoder:
    """A fresh encoder of the shape that the checkpoint's has."""
    args = checkpoint["args"]
    return build_encoder(args["arch"], args["moco_dim"], args["mlp"])


def query_encoder(checkpoint: dict) -> Encoder:
    """f_q or f_q′ of a checkpoint, frozen, in evaluation mode."""
    return _load(_encoder(checkpoint), checkpoint["state_dict"], "query_encoder.")


def no_classifier(checkpoint: dict) -> str | None:
    """What of a checkpoint says that it has no classifier that was trained; None if it has."""
    stage = STAGES[checkpoint["stage"]]
    return stage.untrained(checkpoint["args"]) if stage.classifies else stage.title


def student_classifier(checkpoint: dict) -> LinearClassifier:
    """f_c′, or a baseline's classifier, of a checkpoint, frozen, in evaluation mode."""
    classes, width = checkpoint["state_dict"][F_C].shape
    classifier = LinearClassifier(width, classes)
    return _load(classifier, checkpoint["state_dict"], "classifier.")
