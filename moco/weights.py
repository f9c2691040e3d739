"""The weights that a training starts from: --weights."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from common.errors import InputError, listed, refusing
from common.packages import required
from models import build_encoder, default_weights
from models.backbone import Backbone
from trainer.checkpoint import newest, read
from trainer.nan_guard import not_finite

from .checkpoint import backbone_weights, load_checkpoint
from .config import STAGES, ImageTraining
from .released import is_released
from .resume import Source


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """A state dict from the file or run `where`, and its `record`: source and SHA-256."""

    weights: Mapping[str, Tensor]
    where: Path
    record: dict[str, str]


def initial_weights(weights: str, arch: str) -> InitialWeights | None:
    """Read what --weights names for a backbone; None for random ones.

    A checkpoint of an encoder that was not trained here passes on where its weights come from.
    Raises InputError if there is no such file, run or published file, or it has no weights.
    """
    if weights == "none":
        return None
    path = default_weights(arch) if weights == "default" else Path(weights)
    if not path.exists():
        raise InputError(f"--weights {path} does not exist")
    file = newest(path) if path.is_dir() else path
    if path.suffix == ".safetensors":
        library = required("safetensors.torch", "safetensors", f"--weights {path} needs")
        with refusing(f"--weights {path} cannot be read"):
            contents = library.load_file(path)
    else:
        contents = read(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    record = {"source": file.name if weights == "default" else weights, "sha256": digest}
    if is_released(contents) or (isinstance(contents, dict) and "stage" in contents):
        checkpoint = load_checkpoint(path)
        if (trained_with := checkpoint["args"]["arch"]) != arch:
            raise InputError(f"--weights {path} are of --arch {trained_with}, not {arch}")
        if not STAGES[checkpoint["stage"]].trained:
            record = checkpoint["weights"] or record
        return InitialWeights(backbone_weights(checkpoint), path, record)
    found = _state_dict(contents)
    if not found:
        raise InputError(f"--weights {path} is not a state dict")
    if names := not_finite(found):
        raise InputError(f"--weights {path} has NaN or Inf in {listed(names, 3)}")
    return InitialWeights(found, path, record)


def load_initial(model: nn.Module, initial: InitialWeights) -> None:
    """Load initial weights into the backbones of a model's encoders.

    Raises InputError, with counts, if names or shapes differ.
    """
    for name in ("query_encoder", "key_encoder"):
        if hasattr(model, name):
            backbone = model.get_submodule(name).get_submodule("backbone")
            assert isinstance(backbone, Backbone)
            backbone.load_weights(initial.weights, initial.where)


def weights_record(settings: ImageTraining, source: Source | None) -> dict[str, str] | None:
    """Return source and hash of the weights that a run began with, None for random ones.

    A run that continues from `source` takes them from there; a new one reads the weights. Raises
    InputError if they are missing or do not match the backbone.
    """
    if source:
        return source.checkpoint["weights"]
    initial = initial_weights(settings.weights, settings.arch)
    if initial is None:
        return None
    encoder = build_encoder(settings.arch, None, image_size=settings.image_size)
    load_initial(nn.ModuleDict({"query_encoder": encoder}), initial)
    return initial.record


def require_teachers_start(
    record: dict[str, str] | None, teachers: dict[str, str] | None, savedir: Path
) -> None:
    """Raise InputError if a student does not begin with the weights that its teacher, of the pseudo
    labels in `savedir`, began with; None is random ones."""
    if record and teachers and record["sha256"] != teachers["sha256"]:
        raise InputError(
            f"--weights {record['source']} (SHA-256 {record['sha256'][:8]}) are not those that the "
            f"teacher in {savedir} began with, {teachers['source']} ({teachers['sha256'][:8]})"
        )


def _state_dict(contents: object) -> dict[str, Tensor]:
    """Return the state dict in a file, which may hold it under "state_dict" or "model" and with
    DataParallel's prefix; empty if there is none."""
    if not isinstance(contents, dict):
        return {}
    for key in ("state_dict", "model"):
        if isinstance(contents.get(key), dict):
            contents = contents[key]
    if not all(isinstance(value, Tensor) for value in contents.values()):
        return {}
    return {str(name).removeprefix("module."): value for name, value in contents.items()}
