"""The pseudo-label file: what the teacher thinks of every base image, with the image's id."""

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .episode import TASK_FILE, Task, load_task
from .files import InputError, atomic_write, listed
from .images import ImageSet, describe

PSEUDO_FILE = "pseudo_labels.npz"


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
        here, there = base.fingerprint(), self.about["base"]
        if here != there:
            raise InputError(
                f"the pseudo labels are of {describe(there)}, "
                f"but the data folder holds {describe(here)}"
            )
        row_of = {name: row for row, name in enumerate(self.ids)}
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
            about=np.array(json.dumps(labels.about)),
        )


def load_pseudo_labels(folder: Path) -> tuple[Task, PseudoLabels]:
    """The task and the pseudo labels in `folder`.

    Raises InputError if either is missing or unreadable, or they do not belong together.
    """
    path = folder / PSEUDO_FILE
    if not path.is_file():
        raise InputError(f"no pseudo labels here: {path}; generate_pseudo.py writes them")
    task = load_task(folder)
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = PseudoLabels(
                ids=tuple(file["ids"].tolist()),
                probabilities=file["probabilities"],
                embeddings=file["embeddings"],
                about=json.loads(str(file["about"])),
            )
        made_for = Task.from_dict(labels.about["task"])
        _check(labels, made_for.n_way)
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"{path} is not a pseudo-label file: {error}") from error
    if made_for != task:
        raise InputError(f"{path} ({made_for}) is not of the task in {TASK_FILE} ({task})")
    return task, labels


def _check(labels: PseudoLabels, n_way: int) -> None:
    if lacking := {"teacher", "made_by"} - labels.about.keys():
        raise ValueError(f"it lacks {listed(lacking)}")
    shape = (sum(labels.about["base"]["counts"].values()), n_way)
    if labels.probabilities.shape != shape or len(set(labels.ids)) != shape[0]:
        raise ValueError(f"expected {shape[0]} images with {shape[1]} probabilities each")
    if len(labels.embeddings) != shape[0] or not np.isfinite(labels.embeddings).all():
        raise ValueError(f"expected {shape[0]} embeddings, all of them finite")
    sums = labels.probabilities.sum(axis=1)
    if (
        not np.isfinite(sums).all()
        or (labels.probabilities < 0).any()
        or abs(sums - 1).max() > 1e-3
    ):
        raise ValueError("the rows are not probabilities")
