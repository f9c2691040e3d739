"""Score an encoder, or a student, on every rare image that is not in the support set.

python test.py DATA --resume STUDENT --load_cla
python test.py DATA --resume STAGE_A
"""

import json

import numpy as np
import torch

from datasets import open_dataset
from datasets.episode import Task, draw_task, load_task
from datasets.files import InputError, atomic_write, refuse_to_overwrite
from datasets.images import ImageSet, TransformedImages, check_readable, describe
from moco import options, settings
from moco.augment import plain_view
from moco.checkpoint import (
    load_checkpoint,
    provenance,
    query_encoder,
    require_match,
    student_classifier,
)
from moco.distributed import pick_device, readers
from moco.evaluate import encode, fit_on_support, predictions_csv, score, score_table


def main(argv: list[str] | None = None) -> None:
    args = options.testing_parser().parse_args(argv)
    checkpoint = load_checkpoint(args.resume)
    require_match({"arch": args.arch}, checkpoint["args"], args.resume)
    if args.load_cla and (without := no_classifier(checkpoint)):
        raise InputError(
            f"--load_cla: {args.resume} is of {without}, and has no trained classifier"
        )
    rare = open_dataset(args.data).rare
    task = find_task(args, checkpoint, rare)
    support, query = task.support(rare), task.query(rare)
    how = "direct" if args.load_cla else "lr"
    folder = args.output or (args.resume if args.resume.is_dir() else args.resume.parent)
    name = f"test_{how}_{task.n_way}way_{task.k_shot}shot_seed{task.seed}"
    files = [folder / f"{name}.json", folder / f"{name}.csv"]
    refuse_to_overwrite(files, args.overwrite)
    here = rare.fingerprint()
    if here != task.rare:
        print(f"note: the task was drawn from {describe(task.rare)}, not {describe(here)}")
    check_readable(query, *([] if args.load_cla else [support]))

    device = pick_device(args.device, args.gpu)
    encoder = query_encoder(checkpoint).to(device)
    made_with = checkpoint["args"]
    views = TransformedImages(query, plain_view(made_with["image_size"]))
    embeddings = encode(
        encoder, views, args.batch_size, readers(args.workers), device, progress="testing"
    )
    if args.load_cla:
        logits = student_classifier(checkpoint)(torch.from_numpy(embeddings))
        probabilities = logits.softmax(dim=1).numpy()
    else:
        f_c = fit_on_support(
            encoder,
            support,
            image_size=made_with["image_size"],
            aug_plus=made_with["aug_plus"],
            augnum=args.augnum,
            seed=task.seed,
            device=device,
        )
        probabilities = f_c.predict_proba(embeddings)
    scores = score(np.array(query.labels), probabilities.argmax(axis=1), task.classes)

    about = {"task": task.to_dict(), "classifier": how, "epoch": checkpoint["epoch"],
             "args": settings.recorded(args), "made_by": provenance(),
             "checkpoint_made_by": checkpoint["made_by"]}  # fmt: skip
    with atomic_write(files[0]) as file:
        file.write(json.dumps({**scores, **about}, indent=1).encode())
    with atomic_write(files[1]) as file:
        file.write(predictions_csv(query, probabilities).encode())
    print(f"{task}; classifier: {how}; {len(query)} query images, none of the support set")
    print(score_table(scores))
    print(f"written: {files[0]}, {files[1]}")


def no_classifier(checkpoint: dict) -> str | None:
    """What of a checkpoint says that it has no classifier that was trained; None if it has."""
    args = checkpoint["args"]
    if checkpoint["stage"] == "moco":
        return "stage (a)"
    if not args["p_label"]:
        return "a student trained with --no-p_label"
    return None if "cls" in args["losses"] else f"a student trained with --losses {args['losses']}"


def find_task(args, checkpoint: dict, rare: ImageSet) -> Task:
    """The student's own task; for stage (a)'s encoder that in --savedir, or one drawn by --seed.

    Raises InputError where what was asked for is not what there is.
    """
    if checkpoint["task"]:
        task, where = Task.from_dict(checkpoint["task"]), args.resume
        if args.savedir and load_task(args.savedir) != task:
            raise InputError(
                f"{args.resume} was trained for another task than that in {args.savedir}"
            )
    elif args.savedir:
        task, where = load_task(args.savedir), args.savedir
    else:
        return draw_task(rare, args.n_way, args.k_shot or 5, args.seed or 0)
    given = {"n_way": args.n_way, "k_shot": args.k_shot, "seed": args.seed}
    require_match(given, {"n_way": task.n_way, "k_shot": task.k_shot, "seed": task.seed}, where)
    return task


if __name__ == "__main__":
    options.run(main)
