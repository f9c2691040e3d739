"""Score an encoder or a student on all rare images except the support set.

python test.py DATA --resume STUDENT --load-cla
python test.py DATA --resume STAGE_A
python test.py DATA --resume STAGE_A --tasks 600
python test.py --resume STUDENT --load-cla --predict FOLDER_OR_IMAGES_OR_CSV
"""

import common.startup  # noqa: F401

import baselines
from common.failures import tracebacks_to
from common.files import write_utf8
from datasets import Collection
from datasets.cache import files_key
from datasets.content import content_key
from datasets.episode import Task
from datasets.open import note_on_shared, require_contents
from evaluation.beside import beside, is_complete, print_beside
from evaluation.flags import require_consistent
from evaluation.many_tasks import score_tasks
from evaluation.predict import predict_images
from evaluation.predictions import page_title
from evaluation.run import (
    Evaluation,
    another_task,
    group_word,
    note_on_source,
    reading_of_task,
    score_of,
    write_results,
)
from moco import resume
from moco.checkpoint import load_checkpoint
from moco.config import Testing
from moco.evaluate import note_on_counts, require_calibratable
from moco.scores import predictions_csv, score_table
from plots.sheet import sheet
from trainer import cli
from trainer.flags import parse


def main(argv: list[str] | None = None) -> None:
    given = parse(Testing, argv)
    baselines.register_all()
    given |= reading_of_task(given)
    checkpoint = load_checkpoint(given["resume"])
    settings, device = resume.resolve_encoding(Testing, given, checkpoint)
    run = Evaluation(settings, given, checkpoint, device)
    require_consistent(run)
    data = None
    if settings.data:
        use = ["rare", "base"] if settings.predict and settings.none_of_these else ["rare"]
        data = settings.open_data(use=use)
        resume.note_on_seen_classes(checkpoint, settings.resume, data.rare)
    if settings.tasks:
        assert data is not None
        return score_tasks(run, data)
    task = run.find_task(data)
    if run.classifier == "lr":
        note_on_counts(task)
    if settings.temperature == "cv":
        require_calibratable(task)
    if settings.predict:
        name, rows, paths, page = predict_images(run, data, task)
        if settings.sheet:
            title, level = page_title(name), settings.none_level
            about = run.described(task)
            write_utf8(settings.sheet, sheet(rows, paths, task.classes, level, title, about, page))
            print(f"written: {settings.sheet}")
        return
    assert data is not None
    score_task(run, data, task)


def score_task(run: Evaluation, data: Collection, task: Task) -> None:
    """Score an encoder or a student on the query set of a task."""
    settings, cache = run.settings, run.settings.cache_folder
    rare, images = data.rare, task.query(data.rare)
    files = run.paths(f"test_{run.classifier}_{task.name}")
    tracebacks_to(files[0].parent)
    sets = [images] if settings.load_cla else [images, task.support(rare)]
    scored = {**images.fingerprint(), "content": content_key(sets, cache)}
    require_contents(task, rare, images, cache)
    shared = task.shared(rare, data.groups)
    compares = settings.teacher and run.checkpoint["stage"] == "distill"
    if (previous := run.earlier(files)) is not None:
        older = {**images.fingerprint(), "files": files_key(images, change_time=False)}
        others = ["other images"] * (previous.get("images") not in (scored, older))
        if run.is_done(files, previous, others + another_task(previous, task)):
            if not compares or is_complete(previous.get("beside"), run.checkpoint):
                print(score_table(previous))
                if compares:
                    print_beside(previous["beside"], run.classifier)
                print(f"already done: {files[0]}, {files[1]}")
                return
            print(f"note: {files[0]} lacks the scores beside the teacher's; it is made again")
    note_on_source(task, rare)
    rare = settings.decoded(rare, run.image_size)
    images = task.query(rare)
    support = None if settings.load_cla else task.support(rare)
    encoder = run.encoder()
    probabilities, calibrated = run.predictor(encoder, support, images)(support, images)
    scores = {
        **score_of(images, probabilities), **calibrated, "task": task.to_dict(),
        "classifier": run.classifier, "images": scored, "shared_with_support": shared,
        "data": data.to_dict(), **run.about(),
    }  # fmt: skip
    size = f"{len(images)} query images, none from the support set"
    used = "".join(f", temperature {t:.2f}" for t in calibrated.values())
    print(f"{task}; classifier: {run.classifier}{used}; {size}{group_word(shared)}")
    note_on_shared(shared, len(images))
    print(score_table(scores))
    if compares:
        scores["beside"] = beside(run, encoder, task.support(rare), images)
        print_beside(scores["beside"], run.classifier)
    table = predictions_csv(images, probabilities, task.classes)
    write_results(files, scores, table, settings.overwrite)


if __name__ == "__main__":
    cli.run(main)
