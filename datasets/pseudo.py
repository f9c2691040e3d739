"""The pseudo-label file: what the teacher thinks of every base image, with the image's id."""

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
    """`probabilities[i]`, a row of N that sums to 1, is p = F(x) of the base image `ids[i]`, and
    `embeddings[i]`, a row of D, the teacher's f_q(x).

    `about` says where they come from: the task, the base set's fingerprint, the teacher's
    settings, and the command and commit.
    """

    ids: tuple[str, ...]
    probabilities: np.ndarray
    embeddings: np.ndarray
    about: dict

    def hard(self) -> np.ndarray:
        """argmax p, as class indices."""
        return self.probabilities.argmax(axis=1)

    def sha256(self) -> str:
        """What tells these labels from others, in whatever order they come: a hash of ids and
        probabilities."""
        order = np.argsort(self.ids)
        ids = "\n".join(self.ids[row] for row in order)
        content = ids.encode() + self.probabilities[order].astype("<f4").tobytes()
        return hashlib.sha256(content).hexdigest()

    def for_images(self, base: ImageSet) -> "PseudoLabels":
        """The same in the order of `base`, matched by id.

        Raises InputError if they were made for other images.
        """
        require_same(self.about["base"], base.fingerprint(), "the pseudo labels are of")
        row_of = {name: row for row, name in enumerate(self.ids)}
        if missing := [name for name in base.ids if name not in row_of]:
            raise InputError(f"the pseudo labels lack {listed(missing)}")
        rows = [row_of[name] for name in base.ids]
        return PseudoLabels(base.ids, self.probabilities[rows], self.embeddings[rows], self.about)


def save_pseudo_labels(folder: Path, labels: PseudoLabels) -> None:
    """Write `labels` to `folder`, as an .npz without pickles."""
    with atomic_write(folder / PSEUDO_FILE) as file:
        np.savez_compressed(
            file,
            ids=np.array(labels.ids),
            probabilities=labels.probabilities.astype(np.float32),
            embeddings=labels.embeddings.astype(np.float32),
            about=np.array(json.dumps({"format": FORMAT, **labels.about})),
        )


def load_pseudo_labels(folder: Path) -> tuple[Task, PseudoLabels]:
    """The task and the pseudo labels in `folder`.

    Raises InputError if either is missing or unreadable, or they do not belong together.
    """
    path = folder / PSEUDO_FILE
    if not path.is_file():
        raise InputError(f"no pseudo labels here: {path}; generate_pseudo.py writes them")
    task = load_task(folder)
    with refusing(f"{path} is not a pseudo-label file"):
        with zipfile.ZipFile(path) as file:
            ids, probabilities, embeddings, about = (read_array(file, name) for name in ARRAYS)
        labels = PseudoLabels(
            tuple(ids.tolist()), probabilities, embeddings, parse_json(str(about), FORMAT)
        )
        made_for = _check(labels)
    if made_for != task:
        raise InputError(f"{path} ({made_for}) is not of the task in {TASK_FILE} ({task})")
    return task, labels


def _check(labels: PseudoLabels) -> Task:
    """The task that `labels` are for. Raises ValueError if they are not as `PseudoLabels` says."""
    about, p, embeddings = labels.about, labels.probabilities, labels.embeddings
    for name in ("task", "base", "teacher", "made_by"):
        if not isinstance(about.get(name), dict):
            raise ValueError(f"it lacks {name}")
    task = Task.from_dict(about["task"])
    require_fingerprint(about["base"])
    images, ids = sum(about["base"]["counts"].values()), labels.ids
    if not len(ids) == len(set(ids)) == images or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"expected the ids of {images} images")
    width = about["teacher"].get("moco_dim") or embeddings.shape[-1]
    for array, columns in ((p, task.n_way), (embeddings, width)):
        if array.shape != (images, columns) or array.dtype != np.float32:
            raise ValueError(f"expected {columns} probabilities or features of {images} images")
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings are not all finite")
    if not ((p >= 0) & (p <= 1)).all() or abs(p.sum(axis=1) - 1).max(initial=0) > 1e-3:
        raise ValueError("the rows are not probabilities")
    return task
