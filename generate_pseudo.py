"""Stages (b) and (c): fit a teacher to a few rare images and pseudo-label all base images.

python generate_pseudo.py DATA --resume STAGE_A --savedir OUT

The encoder may have been trained on a base set other than DATA's; a note is then printed.
"""

from typing import Any

import common.startup  # noqa: F401

import numpy as np
import torch

import baselines
from common.errors import InputError
from common.failures import tracebacks_to
from common.files import refuse_to_overwrite
from common.names import beside_numbers, quoted
from datasets import Collection
from datasets.content import content_key
from datasets.episode import TASK_FILE, Task, load_task, save_task
from datasets.images import ImageSet, check_readable, other_images, same_images, unreadable
from datasets.open import choose, draw, note_on_shared, with_contents
from datasets.pseudo import PSEUDO_FILE, PseudoLabels, load_pseudo_labels, save_pseudo_labels
from moco import resume
from moco.checkpoint import load_checkpoint
from moco.config import STAGES, TEACHERS, Labelling, require_undrawn
from moco.evaluate import FrozenEncoder, fit_classifier, linear_map, note_on_counts
from moco.inherit import inherited_from
from moco.outputs import about_output, already_done
from trainer import cli
from trainer.distributed import readers
from trainer.flags import parse


def main(argv: list[str] | None = None) -> None:
    baselines.register_all()
    given = parse(Labelling, argv)
    checkpoint = load_checkpoint(given["resume"], TEACHERS)
    settings, device = resume.resolve_encoding(Labelling, given, checkpoint)
    tracebacks_to(settings.savedir)
    files = [settings.savedir / TASK_FILE, settings.savedir / PSEUDO_FILE]
    data = settings.open_data()
    earlier, task = find_task(settings, given, data)
    about = {
        "task": task.to_dict(), "data": data.to_dict(), "base": data.base.fingerprint(),
        "contents": content_key([data.base], settings.cache_folder),
        "teacher": inherited_from(checkpoint, settings),
        "checkpoint": str(settings.resume.resolve()), "weights": checkpoint["weights"],
    }  # fmt: skip
    if all(file.exists() for file in files) and not settings.overwrite:
        previous = load_pseudo_labels(settings.savedir)[1].about
        if already_done(files, previous, settings, given, checkpoint, differences(previous, about)):
            print(f"already done: {files[0]}, {files[1]}")
            return
    else:  # a task file alone: unfinished run
        refuse_to_overwrite(files[1:], settings.overwrite)
        refuse_to_overwrite(files[:1], settings.overwrite or earlier in (None, task))
    print_notes(settings, checkpoint, data, task)
    support = task.support(data.rare)
    if unreadable(support.paths):
        check_readable(support, data.base)  # lists unreadable images of both sets
    base_images = settings.decoded(data.base, checkpoint["args"]["image_size"])

    embeddings, probabilities, classifier = teach(
        settings, checkpoint, device, support, base_images
    )
    about |= about_output(settings, checkpoint)
    labels = PseudoLabels(data.base.ids, probabilities, embeddings, about, classifier)
    files[1].unlink(missing_ok=True)  # so that an interrupted overwrite leaves no such pair
    save_task(settings.savedir, task, about["made_by"])
    save_pseudo_labels(settings.savedir, labels)
    shares = np.bincount(labels.hard(), minlength=task.n_way) / len(data.base)
    named = zip(beside_numbers(task.classes), shares)
    distribution = ", ".join(f"{name} {share:.1%}" for name, share in named)
    query = task.query(data.rare, complete=False)
    print(f"{task}: {len(support)} support and {len(query)} query images of {data.name}")
    print(f"pseudo labels of {len(data.base)} base images: {distribution}")
    print(f"written: {files[0]}, {files[1]}")


def find_task(
    settings: Labelling, given: dict[str, Any], data: Collection
) -> tuple[Task | None, Task]:
    """Return the task in --savedir, if any, and the one that the settings choose or draw.

    Raises InputError if a drawn task would replace a chosen one, or as `choose` and `draw` do.
    """
    if settings.support:
        require_undrawn(given)
        task = choose(data, settings.support, settings.group_disjoint)
    else:
        task = draw(
            data, settings.n_way, settings.k_shot, settings.seed, settings.group_disjoint,
            settings.rare_split,
        )  # fmt: skip
    file, earlier = settings.savedir / TASK_FILE, None
    try:
        earlier = load_task(settings.savedir) if file.exists() else None
    except InputError:
        if not settings.overwrite:  # else a broken file may be replaced
            raise
    if earlier and earlier.chosen and not settings.support:
        raise InputError(
            f"the support set in {file} was chosen; a drawn one would replace it: choose another "
            "--savedir, or pass --support"
        )
    return earlier, with_contents(task, data.rare, settings.cache_folder)


def differences(previous: dict, about: dict) -> list[str]:
    """Return in what else than settings and checkpoint earlier pseudo labels differ, as text."""
    before, now = (Task.from_dict(values["task"]) for values in (previous, about))
    same_base = same_images(previous["base"], about["base"])
    others = ["other base images"] * (not same_base) + ["another task"] * (before != now)
    # Other images have other contents, of course.
    edited = before == now and (before.contents or now.contents) != now.contents
    edited |= same_base and previous.get("contents", about["contents"]) != about["contents"]
    return others + ["images of other content"] * edited


def print_notes(settings: Labelling, checkpoint: dict, data: Collection, task: Task) -> None:
    """Print what may surprise in the encoder, the task and its query set.

    Raises InputError if the query set of a drawn task lacks a class.
    """
    note_on_counts(task)
    query = task.query(data.rare, complete=not task.chosen)
    trained = STAGES[checkpoint["stage"]].trained
    if trained and (other := other_images(checkpoint["base"], data.base)):
        print(f"note: {settings.resume} was trained on {other}")
    resume.note_on_seen_classes(checkpoint, settings.resume, data.rare)
    note_on_shared(task.shared(data.rare, data.groups), len(query))
    for name, count in query.counts().items():
        if not count:
            print(f"note: {quoted(name)} has no query images: only --predict can use this task")
        elif count < settings.k_query:
            print(
                f"note: {quoted(name)} has only {count} query images: accuracy in steps of "
                f"1/{count}"
            )


def teach(
    settings: Labelling,
    checkpoint: dict,
    device: torch.device,
    support: ImageSet,
    base: ImageSet,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return embeddings f_q(x), M×D, and probabilities p = F(x), M×N, of all base images, and f_c
    as `linear_map` does."""
    workers = readers(settings.workers)
    # (b) freeze f_q, fit f_c on the support set: the teacher F = f_c(f_q)
    f_q = FrozenEncoder(
        checkpoint, device, settings.amp, settings.batch_size, workers, settings.norm_statistics
    )
    copies = f_q.copies(support, settings.augnum)
    f_c = fit_classifier(copies, support.labels, settings.normalize)
    # (c) p = F(x) for every base image
    embeddings = f_q.embed(base, progress="labelling")
    return embeddings, f_c.predict_proba(embeddings).astype(np.float32), linear_map(f_c)


if __name__ == "__main__":
    cli.run(main)
