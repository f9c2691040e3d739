"""What test.py --predict tells none of the rare classes by: kept beside the checkpoint, or made."""

import json
from pathlib import Path

import numpy as np

from common.errors import InputError
from datasets import Collection
from datasets.content import content_key
from datasets.episode import Task
from moco.checkpoint import steps
from moco.evaluate import FrozenEncoder
from moco.meta import MetaLearner
from moco.outliers import Reference, fit_reference, load_reference

from .run import Evaluation


def reference_of(
    run: Evaluation, encoder: FrozenEncoder | MetaLearner, data: Collection | None, task: Task
) -> tuple[Reference | None, Path | None]:
    """Return what tells none of these: kept beside the checkpoint, or made from the data folder and
    then to be kept in the file.

    None, with a note, if there is neither.
    """
    settings = run.settings
    if not settings.none_of_these or isinstance(encoder, MetaLearner):
        return None, None  # a meta-trained model has no embeddings of its own
    file = run.folder / f"none_of_these_{task.name}.npz"
    about = {
        "epoch": run.checkpoint["epoch"], "steps": steps(run.checkpoint),
        "checkpoint_made_by": run.checkpoint["made_by"],
        "task": task.to_dict(), "augnum": settings.augnum,
    }  # fmt: skip
    if data:
        contents = content_key([data.base], settings.cache_folder)
        about |= {"base": data.base.fingerprint(), "contents": contents}
    about = json.loads(json.dumps(about))  # as it is read back from a file
    if file.exists():
        kept = load_reference(file)
        known = {"contents": about.get("contents"), "steps": 0, **kept.about}  # not in older files
        if about == {name: known.get(name) for name in about}:
            return kept, None
    missing = "note: no scores for none of these"
    if data is None:
        print(f"{missing}: they need the base images; pass the data folder once")
        return None, None
    try:
        rare, base = (settings.decoded(x, run.image_size) for x in (data.rare, data.base))
        support = task.support(rare)
        copies = encoder.copies(support, settings.augnum)
        embeddings = encoder.embed(base, "base images")
        reference = fit_reference(copies, np.array(support.labels), embeddings, about)
    except InputError as error:  # of unreadable images, too: it names --skip-unreadable
        print(f"{missing}, which need all rare and base images: {error}")
        return None, None
    if not file.exists():  # at once: should the predictions be refused, it is there the next time
        keep(reference, file)
        return reference, None
    return reference, file


def keep(reference: Reference, file: Path) -> None:
    """Write what tells none of these to a file, or print a note that this is not possible."""
    try:
        reference.save(file)
    except OSError as error:
        print(f"note: {file} cannot be written ({error.strerror}): the data folder is needed again")


def note_on_level(reference: Reference, level: float) -> None:
    """Print a note if there are too few base images for any image to be below the level."""
    if (least := 1 / (1 + reference.base_images)) > level:
        print(
            f"note: with {reference.base_images} base images none_of_these is at least "
            f"{least:.2g}, so above --none-level {level} for every image"
        )
