"""Checkpoints of this method: contents, validation, and the networks in them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError, listed
from common.files import atomic_write
from datasets.episode import Task
from datasets.images import ImageSet, require_fingerprint, require_same, require_same_order
from models import Encoder, LinearClassifier, build_encoder
from trainer.checkpoint import load, read, remove_unfinished, save, torch_save
from trainer.nan_guard import not_finite

from .config import STAGES, TEACHERS
from .released import from_released, is_released

CLASSIFIER = "checkpointClassifier.pth.tar"
FORMAT = 1
CONTENTS = ("stage", "epoch", "args", "base", "task", "made_by", "state_dict", "optimizer")
F_C, BIAS = "classifier.linear.weight", "classifier.linear.bias"


class MustAdapt(InputError):
    """An encoder has no features of its own, before it has adapted to a task."""


def save_checkpoint(folder: Path, contents: dict) -> None:
    """Write `contents` to `folder`, and for a task also the classifier's weights to CLASSIFIER.

    `contents` has all keys of CONTENTS: stage, completed epochs, settings, fingerprint of the base
    set, task (or None), provenance, weights and optimizer state; "part" is the state within an
    epoch. No gradient scaler: bfloat16 has the range of float32. CLASSIFIER is for other code; this
    code reads only the checkpoint.
    """
    remove_unfinished(folder, CLASSIFIER)
    if contents["task"]:  # written first: a run killed in between is unfinished and rewrites it
        about = {key: contents[key] for key in ("epoch", "task", "made_by")}
        weights = _part(contents["state_dict"], "classifier.")
        with atomic_write(folder / CLASSIFIER) as file:
            torch_save({"format": FORMAT, **about, "state_dict": weights}, file)
    save(folder, {"format": FORMAT, **contents})


def load_checkpoint(path: str | Path, stages: tuple[str, ...] | None = None) -> dict:
    """Load the checkpoint at `path`, a file or a run's folder, to the CPU.

    If a folder's latest checkpoint is missing or broken, falls back to the previous one, with a
    note. Settings newer than the file get their defaults. Runs no code from the file. Raises
    InputError if it is missing, invalid, or of none of `stages`.
    """
    checkpoint = load(path, _validated)
    if stages is not None:
        require_stage(checkpoint, stages, path)
    return checkpoint


def require_stage(checkpoint: dict, stages: tuple[str, ...], path: str | Path) -> None:
    """Raise InputError if the checkpoint from `path` is of none of `stages`."""
    if checkpoint["stage"] not in stages:
        raise InputError(
            f"{path} is a checkpoint of {STAGES[checkpoint['stage']].title}; "
            f"expected one of {' or '.join(STAGES[stage].title for stage in stages)}"
        )


def require_trained_on(
    checkpoint: dict, images: ImageSet, path: str | Path, ordered: bool = False
) -> None:
    """Raise InputError if the checkpoint from `path` was trained on other images or, if that
    matters (`ordered`), with their classes in another order; print a note if it does not tell, as
    those of the authors."""
    if "known_settings" in checkpoint:
        print(f"note: {path} does not record which images it was trained on")
        return
    require_same(checkpoint["base"], images, f"{path} was trained on")
    if ordered:
        require_same_order(checkpoint["base"], images, f"{path} was trained with")


def made_from(recorded: Mapping, checkpoint: dict) -> bool:
    """Return whether what is `recorded` with a file was made from this very checkpoint."""
    made = recorded.get("epoch"), recorded.get("steps", 0), recorded.get("checkpoint_made_by")
    return made == (checkpoint["epoch"], steps(checkpoint), checkpoint["made_by"])


def steps(checkpoint: dict) -> int:
    """Return how many steps of its next epoch a checkpoint has done."""
    return (checkpoint.get("part") or {}).get("steps", 0)


def note_on_epochs(checkpoint: dict, path: str | Path) -> None:
    """Print a note if the training of the checkpoint from `path` is not finished."""
    done, planned = checkpoint["epoch"], checkpoint["args"].get("epochs")
    known = STAGES[checkpoint["stage"]].trained and "known_settings" not in checkpoint
    if known and planned is not None and done < planned:
        print(f"note: {path} has {done} of {planned} epochs; the papers use the last one")


def load_teacher(recorded: Mapping) -> dict:
    """Load the checkpoint of the teacher that is `recorded` with its pseudo labels or its student.

    Raises InputError as `load_checkpoint` does, or if it was trained on or replaced since then.
    """
    teacher = load_checkpoint(recorded["checkpoint"], TEACHERS)
    if not made_from(recorded, teacher):
        raise InputError(
            f"{recorded['checkpoint']} has been trained on or replaced since it made the pseudo "
            "labels, which generate_pseudo.py --overwrite makes again"
        )
    return teacher


def _validated(checkpoint: object, path: Path) -> dict:
    """Return the validated checkpoint from `path`; the authors' is converted to our format."""
    if is_released(checkpoint):
        # checkpoint.pth.tar or checkpoint_0190.pth.tar; checkpointClassifier likewise.
        other = path.with_name(path.name.replace("checkpoint", "checkpointClassifier", 1))
        classifier = read(other) if other != path and other.exists() else None
        checkpoint = from_released(checkpoint, classifier, path)
    if not isinstance(checkpoint, dict) or checkpoint.get("stage") not in list(STAGES):
        raise InputError(f"{path} is not a checkpoint of this project's scripts")
    if checkpoint.get("format", 0) > FORMAT:
        raise InputError(
            f"{path} has format {checkpoint['format']}, newer than this code's {FORMAT}"
        )
    if missing := [name for name in CONTENTS if name not in checkpoint]:
        raise InputError(f"{path} is not a complete checkpoint: missing {listed(missing)}")
    _validate(checkpoint)
    return checkpoint


def _validate(checkpoint: dict) -> None:
    """Raise ValueError, or what a wrong type causes, if settings, task or weights are invalid."""
    types = {"epoch": int, "args": dict, "made_by": dict, "state_dict": dict}
    if wrong := [name for name, kind in types.items() if not isinstance(checkpoint[name], kind)]:
        raise ValueError(f"wrong type of {listed(wrong)}")
    part = checkpoint.get("part")
    if part and not (type(part["steps"]) is int and isinstance(part["processes"], list)):
        raise ValueError("invalid state within an epoch")
    stage = STAGES[checkpoint["stage"]]
    required = ["arch", "image_size", "aug_plus"]
    required += ["epochs"] if stage.trained else []
    required += ["p_label", "losses"] if checkpoint["stage"] == "distill" else []
    if missing := [name for name in required if checkpoint["args"].get(name) is None]:
        raise ValueError(f"missing setting {listed(missing)}")
    checkpoint["args"] |= stage.settings.complete(checkpoint["args"])
    if stage.classifies and F_C not in checkpoint["state_dict"]:
        raise ValueError(f"missing weights {F_C}")
    require_fingerprint(checkpoint["base"])
    checkpoint.setdefault("weights", None)  # of runs that began with random weights, or older ones
    start, fields = checkpoint["weights"], ("source", "sha256")
    if start is not None and not (
        isinstance(start, dict) and all(isinstance(start.get(name), str) for name in fields)
    ):
        raise ValueError("invalid record of the initial weights")
    if checkpoint["task"] is not None:
        Task.from_dict(checkpoint["task"])
    with torch.device("meta"):  # shapes only
        encoder = _encoder(checkpoint)
    expected = {f"query_encoder.{name}": x.shape for name, x in encoder.state_dict().items()}
    if (f_c := checkpoint["state_dict"].get(F_C)) is not None:
        classes = len(checkpoint["task"]["classes"]) if checkpoint["task"] else len(f_c)
        expected |= {F_C: (classes, encoder.out_features), BIAS: (classes,)}
    shapes = {name: x.shape for name, x in checkpoint["state_dict"].items()}
    if wrong := [name for name, shape in expected.items() if shapes.get(name) != shape]:
        raise ValueError(f"weights do not match the settings: {listed(wrong, 3)}")
    if names := not_finite(checkpoint["state_dict"]):
        raise ValueError(f"NaN or Inf in weights: {listed(names, 3)}")


def backbone_weights(checkpoint: dict) -> dict:
    """Return the weights of the query encoder's backbone."""
    return _part(checkpoint["state_dict"], "query_encoder.backbone.")


def _part(state_dict: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def _load(module: nn.Module, state_dict: dict, prefix: str) -> nn.Module:
    module.load_state_dict(_part(state_dict, prefix))
    return module.eval().requires_grad_(False)


def _encoder(checkpoint: dict) -> Encoder:
    """Build an encoder of the checkpoint's architecture, with fresh weights."""
    args = checkpoint["args"]
    return build_encoder(args["arch"], args["moco_dim"], args["mlp"], args["image_size"])


def query_encoder(checkpoint: dict) -> Encoder:
    """Return f_q or f_q′ of a checkpoint, frozen, in evaluation mode.

    Raises MustAdapt for a network that is meaningful only once adapted to a task, as MAML's.
    """
    stage, weights = STAGES[checkpoint["stage"]], checkpoint["state_dict"]
    counters = [weights[name] for name in weights if name.endswith("num_batches_tracked")]
    if stage.adapts and counters and not any(counters):
        raise MustAdapt(
            f"the encoder of {stage.title} adapts to each task, and has no BatchNorm statistics of "
            "its own"
        )
    return _load(_encoder(checkpoint), checkpoint["state_dict"], "query_encoder.")


def no_classifier(checkpoint: dict) -> str | None:
    """Return why a checkpoint has no trained classifier (its stage or settings); None if it has."""
    stage = STAGES[checkpoint["stage"]]
    return stage.untrained(checkpoint["args"]) if stage.classifies else stage.title


def student_classifier(checkpoint: dict) -> LinearClassifier:
    """Return f_c′, or a baseline's classifier, frozen, in evaluation mode."""
    n_way, dim = checkpoint["state_dict"][F_C].shape
    classifier = LinearClassifier(dim, n_way)
    return _load(classifier, checkpoint["state_dict"], "classifier.")
