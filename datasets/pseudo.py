"""Pseudo-label file: the teacher's predictions for every base image, with the image ids."""

import dataclasses
import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError, listed, refusing
from common.files import atomic_write, parse_json, read_array

from .episode import TASK_FILE, Task, load_task
from .images import ImageSet, require_fingerprint, require_same

PSEUDO_FILE = "pseudo_labels.npz"
ARRAYS = ("ids", "probabilities", "embeddings", "about")
FORMAT = 1


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo labels of M base images for an N-way task.

    `probabilities` (M×N, rows sum to 1) are p = F(x), `embeddings` (M×D) the teacher's f_q(x), of
    the images `ids`. `classifier` is f_c, N×(D+1) weights and biases of logits whose softmax is p;
    None in older files, and if f_c normalises the embeddings. `about` records the task, the base
    set's fingerprint, the teacher's settings, and the command and commit.
    """

    ids: tuple[str, ...]
    probabilities: np.ndarray
    embeddings: np.ndarray
    about: dict
    classifier: np.ndarray | None = None

    def hard(self) -> np.ndarray:
        """Return argmax p, as class indices."""
        return self.probabilities.argmax(axis=1)

    def sha256(self) -> str:
        """Return an order-independent hash of ids and probabilities."""
        order = np.argsort(self.ids)
        ids = "\n".join(self.ids[row] for row in order)
        content = ids.encode() + self.probabilities[order].astype("<f4").tobytes()
        return hashlib.sha256(content).hexdigest()

    def teacher(self) -> dict | None:
        """Return where the teacher's encoder is and how it was fitted; None in older files."""
        if "checkpoint" not in self.about:
            return None
        about, args = self.about, self.about["args"]
        fit = [name for name in ("augnum", "normalize", "norm_statistics") if name in args]
        found = {name: about[name] for name in ("checkpoint", "epoch", "checkpoint_made_by")}
        found |= {"steps": about["steps"]} if about.get("steps") else {}
        return found | {name: args[name] for name in fit}

    def for_images(self, base: ImageSet) -> "PseudoLabels":
        """Return the pseudo labels in the order of `base`, matched by id.

        Raises InputError if they were made for other images.
        """
        require_same(self.about["base"], base, "the pseudo labels were made for")
        row_of = {name: row for row, name in enumerate(self.ids)}
        if missing := [name for name in base.ids if name not in row_of]:
            raise InputError(f"missing pseudo labels of {listed(missing)}")
        rows = [row_of[name] for name in base.ids]
        return dataclasses.replace(
            self, ids=base.ids, probabilities=self.probabilities[rows],
            embeddings=self.embeddings[rows],
        )  # fmt: skip


def save_pseudo_labels(folder: Path, labels: PseudoLabels) -> None:
    """Save `labels` to `folder`, as an .npz file without pickles."""
    f_c = labels.classifier
    with atomic_write(folder / PSEUDO_FILE) as file:
        np.savez_compressed(
            file,
            ids=np.array(labels.ids),
            probabilities=labels.probabilities.astype(np.float32),
            embeddings=labels.embeddings.astype(np.float32),
            about=np.array(json.dumps({"format": FORMAT, **labels.about})),
            **({} if f_c is None else {"classifier": f_c.astype(np.float32)}),
        )


def load_pseudo_labels(folder: Path) -> tuple[Task, PseudoLabels]:
    """Load the task and the pseudo labels in `folder`.

    Raises InputError if either is missing or invalid, or if they do not match.
    """
    path = folder / PSEUDO_FILE
    if not path.is_file():
        raise InputError(f"no pseudo labels at {path}; create them with generate_pseudo.py")
    task = load_task(folder)
    with refusing(f"pseudo-label file {path} is invalid"):
        with zipfile.ZipFile(path) as file:
            ids, probabilities, embeddings, about = (read_array(file, name) for name in ARRAYS)
            classifier = None
            if "classifier.npy" in file.namelist():
                classifier = read_array(file, "classifier")
        about = parse_json(str(about), FORMAT)
        labels = PseudoLabels(tuple(ids.tolist()), probabilities, embeddings, about, classifier)
        recorded = _validate(labels)
    if recorded != task:
        raise InputError(f"{path} was made for {recorded}, but {TASK_FILE} is {task}")
    return task, labels


def _validate(labels: PseudoLabels) -> Task:
    """Return the task of `labels`. Raises ValueError if they are invalid."""
    about, p, embeddings = labels.about, labels.probabilities, labels.embeddings
    for name in ("task", "base", "teacher", "made_by"):
        if not isinstance(about.get(name), dict):
            raise ValueError(f"missing {name}")
    task = Task.from_dict(about["task"])
    require_fingerprint(about["base"])
    images, ids = sum(about["base"]["counts"].values()), labels.ids
    if not len(ids) == len(set(ids)) == images or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"expected {images} unique ids")
    width = about["teacher"].get("moco_dim") or embeddings.shape[-1]
    for array, columns in ((p, task.n_way), (embeddings, width)):
        if array.shape != (images, columns) or array.dtype != np.float32:
            raise ValueError(f"expected a float32 array of shape {images}×{columns}")
    f_c = labels.classifier
    if f_c is not None and (f_c.shape, f_c.dtype) != ((task.n_way, width + 1), np.float32):
        raise ValueError(f"expected a float32 classifier of shape {task.n_way}×{width + 1}")
    for name, array in (("embeddings", embeddings), ("classifier", f_c)):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{name} contain NaN or Inf")
    if not ((p >= 0) & (p <= 1)).all() or abs(p.sum(axis=1) - 1).max(initial=0) > 1e-3:
        raise ValueError("rows of probabilities must be in [0, 1] and sum to 1")
    return task
