"""Stages (b) and (c): fit a teacher to a few rare images and pseudo-label all base images.

python generate_pseudo.py --datadir DATA --resume STAGE_A --savedir OUT

The encoder may have been trained on a base set other than DATA's; a note is then printed.
"""

import common.threads  # noqa: F401

import numpy as np
import torch

import baselines
from common.failures import tracebacks_to
from common.files import refuse_to_overwrite
from datasets.episode import TASK_FILE, load_task, save_task
from datasets.images import ImageSet, check_readable, describe, same_images, unreadable
from datasets.open import decoded, draw, open_data
from datasets.pseudo import PSEUDO_FILE, PseudoLabels, load_pseudo_labels, save_pseudo_labels
from moco import resume
from moco.checkpoint import load_checkpoint
from moco.config import STAGES, Labelling, inherited_from
from moco.evaluate import FrozenEncoder
from trainer import cli
from trainer.distributed import readers
from trainer.provenance import provenance
from trainer.settings import parse


def main(argv: list[str] | None = None) -> None:
    baselines.register_all()
    given = parse(Labelling, argv)
    checkpoint = load_checkpoint(given["resume"], ("moco", "pretrained"))
    settings, device = resume.resolve_encoding(Labelling, given, checkpoint, given["resume"])
    tracebacks_to(settings.savedir)
    files = [settings.savedir / TASK_FILE, settings.savedir / PSEUDO_FILE]
    data = open_data(settings.datadir, settings)
    base = data.base.fingerprint()
    if all(file.exists() for file in files) and not settings.overwrite:
        previous = load_pseudo_labels(settings.savedir)[1].about
        same = same_images(previous["base"], base)
        if same and resume.is_same_work(settings, given, previous, checkpoint):
            print(f"already done: {files[0]}, {files[1]}")
            return
    refuse_to_overwrite(files[1:], settings.overwrite)  # a task file alone: unfinished run
    task = draw(
        settings.datadir, data.rare, settings.n_way, settings.k_shot, settings.seed,
        settings.lesion_disjoint, settings.rare_split,
    )  # fmt: skip
    if files[0].exists() and not settings.overwrite and load_task(settings.savedir) != task:
        refuse_to_overwrite(files[:1], settings.overwrite)
    support, query = task.support(data.rare), task.query(data.rare)
    if STAGES[checkpoint["stage"]].trained and not same_images(base, checkpoint["base"]):
        trained_on = describe(checkpoint["base"])
        print(f"note: {settings.resume} was trained on {trained_on}, not {describe(base)}")
    for name, count in query.counts().items():
        if count < settings.k_query:
            print(f"note: {name} has only {count} query images: accuracy in steps of 1/{count}")
    if unreadable(support):
        check_readable(support, data.base)  # lists unreadable images of both sets
    base_images = decoded(data.base, checkpoint["args"]["image_size"], settings.cache_folder)

    embeddings, probabilities = teach(settings, checkpoint, device, support, base_images)
    labels = PseudoLabels(
        ids=data.base.ids,
        probabilities=probabilities,
        embeddings=embeddings,
        about={
            "task": task.to_dict(),
            "data": data.to_dict(),
            "base": base,
            "teacher": inherited_from(checkpoint, settings),
            "weights": checkpoint["weights"],
            "epoch": checkpoint["epoch"],
            "checkpoint_made_by": checkpoint["made_by"],
            "args": settings.record(),
            "made_by": provenance(),
        },
    )
    for file in files:  # so that an interrupted overwrite leaves no inconsistent pair
        file.unlink(missing_ok=True)
    save_task(settings.savedir, task, labels.about["made_by"])
    save_pseudo_labels(settings.savedir, labels)
    shares = np.bincount(labels.hard(), minlength=task.n_way) / len(data.base)
    distribution = ", ".join(f"{name} {share:.1%}" for name, share in zip(task.classes, shares))
    print(f"{task}: {len(support)} support and {len(query)} query images of {data.name}")
    print(f"pseudo labels of {len(data.base)} base images: {distribution}")
    print(f"written: {files[0]}, {files[1]}")


def teach(
    settings: Labelling,
    checkpoint: dict,
    device: torch.device,
    support: ImageSet,
    base: ImageSet,
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings f_q(x), M×D, and probabilities p = F(x), M×N, of all base images."""
    workers = readers(settings.workers)
    # (b) freeze f_q, fit f_c on the support set: the teacher F = f_c(f_q)
    f_q = FrozenEncoder(checkpoint, device, settings.amp, settings.batch_size, workers)
    f_c = f_q.fit(support, settings.augnum, settings.seed, settings.normalize)
    # (c) p = F(x) for every base image
    embeddings = f_q.embed(base, progress="labelling")
    return embeddings, f_c.predict_proba(embeddings).astype(np.float32)


if __name__ == "__main__":
    cli.run(main)
