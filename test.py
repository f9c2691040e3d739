"""Score an encoder, or a student, on every rare image that is not in the support set.

python test.py DATA --resume STUDENT --load_cla
python test.py DATA --resume STAGE_A
python test.py --resume STUDENT --load_cla --predict FOLDER
"""

import json
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError, refusing, require_match
from common.files import atomic_write, parse_json, refuse_to_overwrite
from datasets.cache import files_key
from datasets.episode import TASK_FILE, Task, load_task
from datasets.images import ImageSet, check_readable, describe, unlabelled
from datasets.open import decoded, draw, open_data, readable
from moco import config, resume
from moco.checkpoint import load_checkpoint, no_classifier, student_classifier
from moco.evaluate import encode, fit_on_support, ready_encoder
from moco.scores import predictions_csv, score, score_table
from trainer import cli
from trainer.distributed import readers
from trainer.provenance import provenance


def main(argv: list[str] | None = None) -> None:
    args = config.testing_parser().parse_args(argv)
    checkpoint = load_checkpoint(args.resume)
    require_match({"arch": args.arch}, checkpoint["args"], args.resume)
    if args.load_cla and (without := no_classifier(checkpoint)):
        raise InputError(
            f"--load_cla: {args.resume} is of {without}, and has no trained classifier"
        )
    if args.data is None and not (args.predict and args.load_cla):
        raise InputError("the data folder is needed; only --predict with --load_cla does without")
    rare = None
    if args.data:
        made = checkpoint["args"]
        rare = open_data(args.data, args, made, args.resume, use=["rare"]).rare
    task = find_task(args, checkpoint, rare)
    if args.predict:
        images = readable(args, unlabelled(args.predict))
    else:
        images = task.query(rare)
    how = "direct" if args.load_cla else "lr"
    files = result_files(args, task, how, images)
    scored = {**images.fingerprint(), "files": files_key(images)}
    if files[0].exists() and not args.overwrite:
        if before := done_before(files[0], args, checkpoint, scored):
            if not args.predict:
                print(score_table(before))
            print(f"done before: {files[0]}, {files[1]}")
            return
    refuse_to_overwrite(files[:1], args.overwrite)  # the table alone is an unfinished run's
    if rare and (here := rare.fingerprint()) != task.rare:
        print(f"note: the task was drawn from {describe(task.rare)}, not {describe(here)}")
    if not args.predict:
        rare = decoded(args, rare, checkpoint["args"]["image_size"])
        images = task.query(rare)
    support = None if args.load_cla else task.support(rare)
    if args.predict:
        check_readable(*([images, support] if support else [images]))
    probabilities = predict(args, checkpoint, images, support, task.seed)
    about = {"task": task.to_dict(), "classifier": how, "epoch": checkpoint["epoch"],
             "images": scored,
             "args": config.recorded(args), "made_by": provenance(),
             "checkpoint_made_by": checkpoint["made_by"],
             "training": resume.training_of(checkpoint)}  # fmt: skip
    if args.predict:
        scores = {}
        print(f"{task}; classifier: {how}; {len(images)} images of {args.predict}")
    else:
        scores = score(np.array(images.labels), probabilities.argmax(axis=1), task.classes)
        print(f"{task}; classifier: {how}; {len(images)} query images, none of the support set")
        print(score_table(scores))
    table = predictions_csv(images, probabilities, task.classes, truth=not args.predict)
    scores = json.dumps({**scores, **about}, indent=1)
    for file, content in ((files[1], table), (files[0], scores)):
        with atomic_write(file) as out:
            out.write(content.encode())
    print(f"written: {files[0]}, {files[1]}")


def result_files(args, task: Task, how: str, images: ImageSet) -> tuple[Path, Path]:
    """Where the scores go, and each image's probabilities, which are written first."""
    folder = args.output or (args.resume if args.resume.is_dir() else args.resume.parent)
    name = f"{how}_{task.n_way}way_{task.k_shot or 'all'}shot_seed{task.seed}"
    name = f"predict_{images.name}_{name}" if args.predict else f"test_{name}"
    return folder / f"{name}.json", folder / f"{name}.csv"


def done_before(file: Path, args, checkpoint: dict, images: dict) -> dict | None:
    """What `file` says, if this very command has written it; None if another one has."""
    with refusing(f"{file} is broken; --overwrite makes it anew"):
        before = parse_json(file.read_bytes(), newest=0)
    same_images = before.get("images") == images
    return before if same_images and resume.is_same_work(args, before, checkpoint) else None


def predict(
    args, checkpoint: dict, images: ImageSet, support: ImageSet | None, seed: int
) -> np.ndarray:
    """Each image's probability of each of the task's classes, by the student's own classifier or,
    with a support set, by one fitted on that."""
    encoder, device = ready_encoder(args, checkpoint)
    made_with = checkpoint["args"]
    size, workers = made_with["image_size"], readers(args.workers)
    embeddings = encode(encoder, images, size, args.batch_size, workers, device, progress="testing")
    if support is None:
        return student_classifier(checkpoint)(torch.from_numpy(embeddings)).softmax(dim=1).numpy()
    f_c = fit_on_support(
        encoder,
        support,
        image_size=made_with["image_size"],
        aug_plus=made_with["aug_plus"],
        augnum=args.augnum,
        seed=seed,
        normalize=args.normalize,
        device=device,
    )
    return f_c.predict_proba(embeddings)


def find_task(args, checkpoint: dict, rare: ImageSet | None) -> Task:
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
    elif args.load_cla:
        raise InputError(
            f"{args.resume} does not tell its task; --savedir names the folder of its {TASK_FILE}"
        )
    else:
        return draw(args.data, args, rare, args.k_shot or 5)
    if args.lesion_disjoint or args.rare_split:
        raise InputError(
            f"--lesion-disjoint and --rare-split draw a task, but {where} has one; they are for "
            "generate_pseudo.py then"
        )
    given = {"n_way": args.n_way, "k_shot": args.k_shot, "seed": args.seed}
    require_match(given, {"n_way": task.n_way, "k_shot": task.k_shot, "seed": task.seed}, where)
    if args.load_cla and task.n_way != (has := student_classifier(checkpoint).linear.out_features):
        raise InputError(f"{args.resume} tells {has} classes apart, but {where} has {task.n_way}")
    return task


if __name__ == "__main__":
    cli.run(main)
