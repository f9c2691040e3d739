"""Score an encoder or a student on all rare images except the support set.

python test.py DATA --resume STUDENT --load_cla
python test.py DATA --resume STAGE_A
python test.py --resume STUDENT --load_cla --predict FOLDER_OR_IMAGES_OR_CSV
"""

import json
from pathlib import Path

import common.threads  # noqa: F401

import numpy as np
import torch

import baselines
from common.errors import InputError, refusing, require_match
from common.failures import tracebacks_to
from common.files import atomic_write, parse_json, refuse_to_overwrite
from datasets.cache import files_key
from datasets.episode import TASK_FILE, Task, load_task
from datasets.images import ImageSet, check_readable, describe, same_images
from datasets.open import decoded, draw, open_data, open_unlabelled
from moco import resume
from moco.checkpoint import load_checkpoint, no_classifier, student_classifier
from moco.config import STAGES, Testing
from moco.evaluate import FrozenEncoder, MetaLearner
from moco.scores import predictions_csv, score, score_table
from trainer import cli
from trainer.distributed import readers
from trainer.provenance import provenance
from trainer.settings import parse


def main(argv: list[str] | None = None) -> None:
    given = parse(Testing, argv)
    baselines.register_all()
    checkpoint = load_checkpoint(given["resume"])
    settings, device = resume.resolve_encoding(Testing, given, checkpoint, given["resume"])
    adapts = STAGES[checkpoint["stage"]].adapts is not None
    if settings.load_cla and adapts:
        raise InputError(
            f"--load-cla: {settings.resume} has no trained classifier; it adapts to the support "
            "set by itself"
        )
    if settings.load_cla and (reason := no_classifier(checkpoint)):
        raise InputError(f"--load-cla: {settings.resume} ({reason}) has no trained classifier")
    if settings.data is None and not (settings.predict and settings.load_cla):
        raise InputError("missing data folder; only --predict with --load-cla works without it")
    rare = found = None
    if settings.data:
        data = open_data(settings.data, settings, use=["rare"])
        rare, found = data.rare, data.to_dict()
    task = find_task(settings, checkpoint, rare)
    if settings.predict:
        images, found = open_unlabelled(settings.predict, settings)
    else:
        images = task.query(rare)
    classifier = "adapted" if adapts else "direct" if settings.load_cla else "lr"
    files = result_files(settings, task, classifier, images)
    tracebacks_to(files[0].parent)
    scored = {**images.fingerprint(), "files": files_key(images)}
    if files[0].exists() and not settings.overwrite:
        if previous := previous_scores(files[0], settings, given, checkpoint, scored):
            if not settings.predict:
                print(score_table(previous))
            print(f"already done: {files[0]}, {files[1]}")
            return
    refuse_to_overwrite(files[:1], settings.overwrite)  # a CSV file alone: unfinished run
    if rare and not same_images(fingerprint := rare.fingerprint(), task.rare):
        print(f"note: the task was drawn from {describe(task.rare)}, not {describe(fingerprint)}")
    if not settings.predict:
        rare = decoded(rare, checkpoint["args"]["image_size"], settings.cache_folder)
        images = task.query(rare)
    support = None if settings.load_cla else task.support(rare)
    if settings.predict:
        check_readable(*([images, support] if support else [images]))
    probabilities = predict(settings, checkpoint, device, images, support, task.seed)
    about = {"task": task.to_dict(), "classifier": classifier, "epoch": checkpoint["epoch"],
             "images": scored, "data": found,
             "args": settings.record(), "made_by": provenance(),
             "checkpoint_made_by": checkpoint["made_by"],
             "training": resume.training_of(checkpoint)}  # fmt: skip
    if settings.predict:
        scores = {}
        print(f"{task}; classifier: {classifier}; {len(images)} images of {images.name}")
    else:
        scores = score(np.array(images.labels), probabilities.argmax(axis=1), task.classes)
        size = f"{len(images)} query images, none from the support set"
        print(f"{task}; classifier: {classifier}; {size}")
        print(score_table(scores))
    table = predictions_csv(images, probabilities, task.classes, truth=not settings.predict)
    scores = json.dumps({**scores, **about}, indent=1)
    files[0].unlink(missing_ok=True)  # an interrupted --overwrite must not look done
    for file, content in ((files[1], table), (files[0], scores)):
        with atomic_write(file) as out:
            out.write(content.encode())
    print(f"written: {files[0]}, {files[1]}")


def result_files(
    settings: Testing, task: Task, classifier: str, images: ImageSet
) -> tuple[Path, Path]:
    """Return the JSON file of the scores and the CSV file of the predictions."""
    folder = settings.output or (
        settings.resume if settings.resume.is_dir() else settings.resume.parent
    )
    name = f"{classifier}_{task.n_way}way_{task.k_shot or 'all'}shot_seed{task.seed}"
    name = f"predict_{images.name}_{name}" if settings.predict else f"test_{name}"
    return folder / f"{name}.json", folder / f"{name}.csv"


def previous_scores(
    file: Path, settings: Testing, given: dict, checkpoint: dict, images: dict
) -> dict | None:
    """Return the contents of `file` if an equivalent command wrote it, else None."""
    with refusing(f"{file} is invalid; replace it with --overwrite"):
        previous = parse_json(file.read_bytes(), newest=0)
    same_images = previous.get("images") == images
    same = same_images and resume.is_same_work(settings, given, previous, checkpoint)
    return previous if same else None


def predict(
    settings: Testing,
    checkpoint: dict,
    device: torch.device,
    images: ImageSet,
    support: ImageSet | None,
    seed: int,
) -> np.ndarray:
    """Return class probabilities, M×N, of M images.

    By the student's classifier, or with a support set by a logistic regression fitted on it or,
    for a meta-learning method, by the model adapted to it.
    """
    options = device, settings.amp, settings.batch_size, readers(settings.workers)
    if support and STAGES[checkpoint["stage"]].adapts:
        return MetaLearner(checkpoint, *options).predict(images, support, progress="testing")
    encoder = FrozenEncoder(checkpoint, *options)
    embeddings = encoder.embed(images, progress="testing")
    if support is None:
        return student_classifier(checkpoint)(torch.from_numpy(embeddings)).softmax(dim=1).numpy()
    return encoder.fit(support, settings.augnum, seed, settings.normalize).predict_proba(embeddings)


def find_task(settings: Testing, checkpoint: dict, rare: ImageSet | None) -> Task:
    """Return the checkpoint's task, else that in --savedir, else one drawn with --seed.

    Raises InputError if it conflicts with the settings or the classifier.
    """
    if checkpoint["task"]:
        task, where = Task.from_dict(checkpoint["task"]), settings.resume
        if settings.savedir and load_task(settings.savedir) != task:
            raise InputError(
                f"{settings.resume} was trained for another task than that in {settings.savedir}"
            )
    elif settings.savedir:
        task, where = load_task(settings.savedir), settings.savedir
    elif settings.load_cla:
        raise InputError(
            f"{settings.resume} does not contain its task; pass the folder of its {TASK_FILE} as "
            "--savedir"
        )
    else:
        return draw(
            settings.data, rare, settings.n_way, settings.k_shot or 5, settings.seed or 0,
            settings.lesion_disjoint, settings.rare_split,
        )  # fmt: skip
    if settings.lesion_disjoint or settings.rare_split:
        raise InputError(
            f"--lesion-disjoint and --rare-split apply to drawing a task, but {where} has one; "
            "pass them to generate_pseudo.py"
        )
    requested = {"n_way": settings.n_way, "k_shot": settings.k_shot, "seed": settings.seed}
    require_match(requested, {"n_way": task.n_way, "k_shot": task.k_shot, "seed": task.seed}, where)
    if settings.load_cla:
        n_way = student_classifier(checkpoint).linear.out_features
        if n_way != task.n_way:
            raise InputError(
                f"{settings.resume} classifies {n_way} classes, but {where} has {task.n_way}"
            )
    return task


if __name__ == "__main__":
    cli.run(main)
