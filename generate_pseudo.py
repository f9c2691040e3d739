"""Stages (b) and (c): a teacher from a few rare images, and what it says of every base image.

python generate_pseudo.py --datadir DATA --resume STAGE_A --savedir OUT

The encoder may have been trained on another base set than the one it labels (some images fewer, a
larger collection): a note says so.
"""

import numpy as np

from common.errors import require_match
from common.files import refuse_to_overwrite
from datasets.episode import TASK_FILE, load_task, save_task
from datasets.images import ImageSet, check_readable, describe, unreadable
from datasets.open import CLASSES, decoded, draw, open_data
from datasets.pseudo import PSEUDO_FILE, PseudoLabels, load_pseudo_labels, save_pseudo_labels
from moco import config, resume
from moco.checkpoint import load_checkpoint
from moco.evaluate import encode, fit_on_support, ready_encoder
from trainer import cli
from trainer.distributed import readers
from trainer.provenance import provenance


def main(argv: list[str] | None = None) -> None:
    args = config.labelling_parser().parse_args(argv)
    files = [args.savedir / TASK_FILE, args.savedir / PSEUDO_FILE]
    checkpoint = load_checkpoint(args.resume, ("moco",))
    teacher = checkpoint["args"]
    require_match({"arch": args.arch}, teacher, args.resume)
    data = open_data(args.datadir, args, teacher, args.resume)
    base = data.base.fingerprint()
    if all(file.exists() for file in files) and not args.overwrite:
        before = load_pseudo_labels(args.savedir)[1].about
        if before["base"] == base and resume.is_same_work(args, before, checkpoint):
            print(f"done before: {files[0]}, {files[1]}")
            return
    refuse_to_overwrite(files[1:], args.overwrite)  # the task alone is an unfinished run's
    task = draw(args.datadir, args, data.rare, args.k_shot)
    if files[0].exists() and not args.overwrite and load_task(args.savedir) != task:
        refuse_to_overwrite(files[:1], args.overwrite)
    support, query = task.support(data.rare), task.query(data.rare)
    if base != checkpoint["base"]:
        trained_on = describe(checkpoint["base"])
        print(f"note: {args.resume} was trained on {trained_on}, not {describe(base)}")
    for name, left in query.counts().items():
        if left < args.k_query:
            print(
                f"note: {name} keeps {left} query images: its accuracy moves in steps of 1/{left}"
            )
    if unreadable(support):
        check_readable(support, data.base)  # to name them all at once
    base_images = decoded(args, data.base, teacher["image_size"])

    embeddings, probabilities = teach(args, checkpoint, support, base_images)
    classes = {name: getattr(args, name) for name in CLASSES}  # given here or inherited
    labels = PseudoLabels(
        ids=data.base.ids,
        probabilities=probabilities,
        embeddings=embeddings,
        about={
            "task": task.to_dict(),
            "base": base,
            "teacher": {name: teacher.get(name) for name in config.INHERITED} | classes,
            "epoch": checkpoint["epoch"],
            "checkpoint_made_by": checkpoint["made_by"],
            "args": config.recorded(args),
            "made_by": provenance(),
        },
    )
    for file in files:  # a half-finished overwrite then has a file missing, not two that disagree
        file.unlink(missing_ok=True)
    save_task(args.savedir, task, labels.about["made_by"])
    save_pseudo_labels(args.savedir, labels)
    shares = np.bincount(labels.hard(), minlength=task.n_way) / len(data.base)
    said = ", ".join(f"{name} {share:.1%}" for name, share in zip(task.classes, shares))
    print(f"{task}: {len(support)} support and {len(query)} query images of {data.name}")
    print(f"pseudo labels of {len(data.base)} base images: {said}")
    print(f"written: {files[0]}, {files[1]}")


def teach(
    args, checkpoint: dict, support: ImageSet, base: ImageSet
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings f_q(x), M×D, and the probabilities p = F(x), M×N, of every base image."""
    made_with = checkpoint["args"]
    # (b) freeze f_q, fit f_c on the support set: the teacher F = f_c(f_q)
    encoder, device = ready_encoder(args, checkpoint)
    f_c = fit_on_support(
        encoder,
        support,
        image_size=made_with["image_size"],
        aug_plus=made_with["aug_plus"],
        augnum=args.augnum,
        seed=args.seed,
        normalize=args.normalize,
        device=device,
    )
    # (c) p = F(x) for every base image
    size, workers = made_with["image_size"], readers(args.workers)
    embeddings = encode(encoder, base, size, args.batch_size, workers, device, progress="labelling")
    return embeddings, f_c.predict_proba(embeddings).astype(np.float32)


if __name__ == "__main__":
    cli.run(main)
