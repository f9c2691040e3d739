"""Score an encoder or a student on all rare images except the support set.

python test.py DATA --resume STUDENT --load-cla
python test.py DATA --resume STAGE_A
python test.py DATA --resume STAGE_A --tasks 600
python test.py --resume STUDENT --load-cla --predict FOLDER_OR_IMAGES_OR_CSV
"""

import json
from pathlib import Path
from typing import Any

import common.startup  # noqa: F401

import numpy as np
import torch
from tqdm import tqdm

import baselines
from common.errors import InputError, listed, refusing, require_match
from common.failures import tracebacks_to
from common.files import atomic_write, parse_json, refuse_to_overwrite
from datasets import Collection
from datasets.cache import files_key
from datasets.content import content_key, digests
from datasets.episode import TASK_FILE, Task, load_task
from datasets.images import ImageSet, advice, check_readable, describe, same_images
from datasets.open import (
    choose,
    decoded,
    draw,
    notes_of,
    open_data,
    open_unlabelled,
    require_contents,
)
from moco import resume
from moco.checkpoint import load_checkpoint, no_classifier, student_classifier
from moco.config import STAGES, TEACHERS, Testing, require_undrawn
from moco.evaluate import (
    FrozenEncoder,
    MetaLearner,
    Predictor,
    adaptations,
    direct,
    regressions,
    require_calibratable,
)
from moco.outliers import Reference, fit_reference, load_reference
from moco.predictions import (
    Row,
    error_rows,
    merged,
    predicted_rows,
    prediction_summary,
    predictions_text,
    read_predictions,
)
from moco.scores import (
    beside_table,
    paired,
    paired_table,
    predictions_csv,
    read_tasks,
    score,
    score_table,
    summary,
    summary_table,
    task_row,
    tasks_csv,
)
from plots.sheet import sheet
from trainer import cli
from trainer.distributed import readers
from trainer.provenance import provenance
from trainer.settings import parse


def main(argv: list[str] | None = None) -> None:
    given = parse(Testing, argv)
    baselines.register_all()
    checkpoint = load_checkpoint(given["resume"])
    settings, device = resume.resolve_encoding(Testing, given, checkpoint, given["resume"])
    if settings.support:
        require_undrawn(given)
    if settings.load_cla and adapts(checkpoint):
        raise InputError(
            f"--load-cla: {settings.resume} has no trained classifier; it adapts to the support "
            "set by itself"
        )
    if settings.load_cla and (reason := no_classifier(checkpoint)):
        raise InputError(f"--load-cla: {settings.resume} ({reason}) has no trained classifier")
    if settings.data is None and not (settings.predict and settings.load_cla):
        raise InputError("missing data folder; only --predict with --load-cla works without it")
    data = None
    if settings.data:
        use = ["rare", "base"] if settings.predict and settings.none_of_these else ["rare"]
        data = open_data(settings.data, settings, use=use)
        resume.note_on_seen_classes(checkpoint, settings.resume, data.rare)
    if settings.temperature == "cv" and (settings.load_cla or adapts(checkpoint)):
        raise InputError(
            "--temperature cv fits a logistic regression on parts of the support set; this "
            f"classifier is another: {classifier_of(settings, checkpoint)}"
        )
    if settings.tasks:
        assert data is not None
        return score_tasks(settings, given, checkpoint, device, data)
    if settings.compare:
        raise InputError("--compare requires --tasks")
    task = find_task(settings, checkpoint, data)
    if settings.temperature == "cv":
        require_calibratable(task)
    if settings.predict:
        return predict_images(settings, given, checkpoint, device, data, task)
    if settings.sheet:
        raise InputError("--sheet requires --predict")
    assert data is not None
    return score_task(settings, given, checkpoint, device, data, task)


def score_task(
    settings: Testing,
    given: dict,
    checkpoint: dict,
    device: torch.device,
    data: Collection,
    task: Task,
) -> None:
    """Score an encoder or a student on the query set of a task."""
    rare, images = data.rare, task.query(data.rare)
    classifier = classifier_of(settings, checkpoint)
    files = result_paths(settings, f"test_{classifier}_{task.name}")
    tracebacks_to(files[0].parent)
    sets = [images] if settings.load_cla else [images, task.support(rare)]
    scored = {**images.fingerprint(), "content": content_key(sets, settings.cache_folder)}
    require_contents(task, rare, images, settings.cache_folder)
    shared = task.shared(rare, data.groups)
    if files[0].exists() and not settings.overwrite:
        older = {**images.fingerprint(), "files": files_key(images, change_time=False)}
        previous = read_scores(files[0])
        others = ["other images"] * (previous.get("images") not in (scored, older))
        others += another_task(previous, task)
        if resume.already_done(files, previous, settings, given, checkpoint, others):
            print(score_table(previous))
            if settings.teacher and previous.get("beside"):
                print_beside(previous["beside"])
            print(f"already done: {files[0]}, {files[1]}")
            return
    else:  # a CSV file alone: unfinished run
        refuse_to_overwrite(files[:1], settings.overwrite)
    note_on_source(task, rare)
    rare = decoded(rare, checkpoint["args"]["image_size"], settings.cache_folder)
    images = task.query(rare)
    support = None if settings.load_cla else task.support(rare)
    encoder = frozen(settings, checkpoint, device)
    predict, temperatures = predictor_of(settings, checkpoint, encoder, support, images)
    probabilities = predict(support, images)
    scores = {
        **score_of(images, probabilities), **temperature_of(temperatures),
        "task": task.to_dict(), "classifier": classifier,
        "images": scored, "shared_with_support": shared, "data": data.to_dict(),
        **about_run(settings, checkpoint),
    }  # fmt: skip
    size = f"{len(images)} query images, none from the support set"
    used = "".join(f", temperature {t:.2f}" for t in temperatures)
    print(f"{task}; classifier: {classifier}{used}; {size}{group_word(shared)}")
    for note in notes_of(shared, len(images)):
        print(note)
    print(score_table(scores))
    if settings.teacher and checkpoint["stage"] == "distill":
        scores["beside"] = beside(settings, checkpoint, encoder, task.support(rare), images)
        print_beside(scores["beside"])
    write_results(files, scores, predictions_csv(images, probabilities, task.classes))


def predict_images(
    settings: Testing,
    given: dict,
    checkpoint: dict,
    device: torch.device,
    data: Collection | None,
    task: Task,
) -> None:
    """Classify images without labels; add new and changed ones to an earlier result."""
    assert settings.predict
    images, found, errors = open_unlabelled(settings.predict, settings)
    classifier = classifier_of(settings, checkpoint)
    files = result_paths(settings, f"predict_{images.name}_{classifier}_{task.name}")
    tracebacks_to(files[0].parent)
    support = None
    if not settings.load_cla:
        assert data is not None
        support = task.support(data.rare)
        require_contents(task, data.rare, None, settings.cache_folder)
    if data:
        note_on_source(task, data.rare)
    encoder = frozen(settings, checkpoint, device)
    reference = reference_of(settings, checkpoint, encoder, data, task)
    cache = settings.cache_folder
    contents = dict(zip(images.ids, digests(images.paths, cache)))
    about = {
        "task": task.to_dict(), "classifier": classifier,
        "images": {**images.fingerprint(), "content": content_key([images], cache)},
        "support": content_key([support], cache) if support else None, "data": found,
        "none_of_these": reference and reference.about, **about_run(settings, checkpoint),
    }  # fmt: skip
    rows: list[Row] = []
    known: dict[str, str] = {}  # contents of the images of `rows`
    if files[0].exists() and not settings.overwrite:
        previous = read_scores(files[0])
        recorded = same_data(previous, settings)
        others = another_task(previous, task)
        others += ["other support images"] * (recorded.get("support") != about["support"])
        if resume.already_done(files, recorded, settings, given, checkpoint, others):
            earlier = read_predictions(files[1], task.classes)
            if previous.get("none_of_these") == about["none_of_these"]:
                rows, known = earlier, previous["contents"]
                about |= {name: previous[name] for name in ("temperature",) if name in previous}
            else:
                print("note: with other scores for none of these than before: made again")
    else:  # a CSV file alone: unfinished run
        refuse_to_overwrite(files[:1], settings.overwrite)
    read = {row["image"] for row in rows if "prediction" in row}
    new = images.take(i for i in images.ids if i not in read or known.get(i) != contents[i])
    failed = {i: why for i, why in errors.items() if known.get(i) != ""}
    if new or failed or not rows:
        check_readable(*([new, support] if support else [new]))
        added = error_rows(errors)
        if new:
            predict, temperatures = predictor_of(settings, checkpoint, encoder, support, new)
            probabilities = predict(support, new)
            about |= temperature_of(temperatures)
            none = reference.none_of_these(encoder.embed(new)) if reference else None
            added += predicted_rows(new, probabilities, task.classes, none)
        if rows:
            print(f"{len(new)} new or changed images; {len(images) - len(new)} as before")
        rows = merged(rows, added)
        about["contents"] = known | contents | dict.fromkeys(errors, "")
        write_results(files, about, predictions_text(rows, task.classes, settings.none_level))
    else:
        print(f"already done: {files[0]}, {files[1]}")
    there = dict(zip(images.ids, images.paths))
    if gone := [row["image"] for row in rows if row["image"] not in {*there, *errors}]:
        print(f"note: {len(gone)} images are no longer there; their rows are kept: {listed(gone)}")
    used = f", temperature {about['temperature']:.2f}" if "temperature" in about else ""
    print(f"{task}; classifier: {classifier}{used}; {len(rows)} images of {images.name}")
    print(prediction_summary(rows, task.classes, settings.none_level))
    if settings.sheet:
        page = sheet(rows, there, task.classes, settings.none_level, files[1].stem)
        with atomic_write(settings.sheet) as out:
            out.write(page.encode())
        print(f"written: {settings.sheet}")


def same_data(previous: dict, settings: Testing) -> dict:
    """Return an earlier result of --predict, with the data folder of `settings`.

    What is compared of that folder are the support images and the base images. Raises InputError
    for a result of an earlier version, which does not record each image.
    """
    if "contents" not in previous:
        raise InputError(
            "the earlier predictions do not record which images they are of; replace them with "
            "--overwrite, or choose another folder with --output"
        )
    return {**previous, "args": {**previous["args"], "data": settings.record()["data"]}}


def reference_of(
    settings: Testing,
    checkpoint: dict,
    encoder: FrozenEncoder | MetaLearner,
    data: Collection | None,
    task: Task,
) -> Reference | None:
    """Return what tells none of these: kept beside the checkpoint, or made from the data folder.

    None, with a note, if there is neither.
    """
    if not settings.none_of_these or isinstance(encoder, MetaLearner):
        return None  # a meta-trained model has no embeddings of its own
    folder = settings.resume if settings.resume.is_dir() else settings.resume.parent
    file = folder / f"none_of_these_{task.name}.npz"
    about = {
        "epoch": checkpoint["epoch"], "checkpoint_made_by": checkpoint["made_by"],
        "task": task.to_dict(), "augnum": settings.augnum,
    }  # fmt: skip
    kept = load_reference(file) if file.exists() else None
    if kept and any(kept.about.get(name) != json_types(value) for name, value in about.items()):
        kept = None
    missing = "no scores for none of these"
    if data is None:
        if kept is None:
            print(f"note: {missing}: they need the base images; pass the data folder once")
        return kept
    about["base"] = data.base.fingerprint()
    if kept and kept.about["base"] == json_types(about["base"]):
        return kept
    size = checkpoint["args"]["image_size"]
    try:
        rare, base = (decoded(part, size, settings.cache_folder) for part in (data.rare, data.base))
        support = task.support(rare)
    except InputError as error:
        print(f"note: {missing}: {error}")
        return None
    copies = encoder.copies(support, settings.augnum)
    reference = fit_reference(
        copies, np.array(support.labels), encoder.embed(base, "base images"), json_types(about)
    )
    try:
        reference.save(file)
    except OSError as error:
        print(f"note: {file} cannot be written ({error.strerror}): the data folder is needed again")
    return reference


def json_types(value: Any) -> Any:
    """Return a value as it is read back from a JSON file."""
    return json.loads(json.dumps(value))


def note_on_source(task: Task, rare: ImageSet) -> None:
    """Print a note if the task was drawn from other rare images."""
    if not same_images(fingerprint := rare.fingerprint(), task.rare):
        drawn_from, hint = describe(task.rare), advice(task.rare, rare)
        print(f"note: the task was drawn from {drawn_from}, not {describe(fingerprint)}{hint}")


def another_task(previous: dict, task: Task) -> list[str]:
    """Return what differs, for a message, if an earlier result is of another task."""
    recorded = previous.get("task")
    return ["another task"] * (not recorded or Task.from_dict(recorded) != task)


def score_of(images: ImageSet, probabilities: np.ndarray) -> dict:
    """Return the scores of the probabilities, M×N, of M images."""
    predicted = probabilities.argmax(axis=1)
    return score(np.array(images.labels), predicted, images.classes, probabilities)


TEACHER = "teacher, logistic regression"
STUDENT_DIRECT, STUDENT_LR = "student, its own classifier", "student, logistic regression"


def beside(
    settings: Testing, checkpoint: dict, encoder: FrozenEncoder, support: ImageSet, query: ImageSet
) -> dict[str, dict | None]:
    """Return the scores of a student and its teacher on the same query set.

    None for the teacher, with a note, if its checkpoint is not there or has been trained on.
    """
    found: dict[str, dict | None] = {TEACHER: None}
    recorded = checkpoint.get("teacher")
    why = "the student does not record its teacher" if recorded is None else None
    if recorded:
        try:
            teacher = load_checkpoint(recorded["checkpoint"], TEACHERS)
            if any(teacher[key] != recorded[name] for key, name in
                   (("epoch", "epoch"), ("made_by", "checkpoint_made_by"))):  # fmt: skip
                why = f"{recorded['checkpoint']} has been trained on or replaced"
        except InputError as error:
            why = str(error)
    if why:
        print(f"note: the teacher's score is not at hand: {why}")
    else:
        f_q = frozen(settings, teacher, encoder.device)
        predict = regressions(f_q, support, query, recorded["augnum"], recorded["normalize"])
        found[TEACHER] = score_of(query, predict(support, query))
    if no_classifier(checkpoint) is None:
        predict = direct(encoder, student_classifier(checkpoint), query)
        found[STUDENT_DIRECT] = score_of(query, predict(None, query))
    temperatures: list[float] | None = [] if settings.temperature == "cv" else None
    predict = regressions(
        encoder, support, query, settings.augnum, settings.normalize, temperatures
    )
    found[STUDENT_LR] = score_of(query, predict(support, query))
    return found


def print_beside(found: dict[str, dict | None]) -> None:
    """Print the scores of `beside`, and a note if the student is worse than its teacher."""
    print()
    print(beside_table(found))
    teacher, student = found[TEACHER], found.get(STUDENT_DIRECT) or found[STUDENT_LR]
    if teacher and student and student["accuracy"] < teacher["accuracy"]:
        both = f"{student['accuracy']:.1%} against {teacher['accuracy']:.1%}"
        print(f"note: the student is worse than its teacher: {both}")


def about_run(settings: Testing, checkpoint: dict) -> dict:
    """Return what the JSON file tells about the command and the checkpoint."""
    return {
        "epoch": checkpoint["epoch"],
        "args": settings.record(),
        "made_by": provenance(),
        "checkpoint_made_by": checkpoint["made_by"],
        "training": resume.training_of(checkpoint),
    }


def write_results(files: tuple[Path, Path], scores: dict, table: str) -> None:
    """Write the JSON file of the scores and the CSV file `table`."""
    files[0].unlink(missing_ok=True)  # an interrupted --overwrite must not look done
    for file, content in ((files[1], table), (files[0], json.dumps(scores, indent=1))):
        with atomic_write(file) as out:
            out.write(content.encode())
    print(f"written: {files[0]}, {files[1]}")


def score_tasks(
    settings: Testing, given: dict, checkpoint: dict, device: torch.device, data: Collection
) -> None:
    """Score an encoder on the tasks of seeds 0 to N-1, which `--seed` draws one by one.

    Encodes each image once. Raises InputError for a model of one task, whose support labels have
    shaped its features, and if a task is impossible.
    """
    if checkpoint["task"] or STAGES[checkpoint["stage"]].classifies:
        raise InputError(
            f"--tasks: {settings.resume} was trained for one task, whose support labels shaped its "
            "features; score an encoder of stage (a) or a baseline that knows no task, or train a "
            "model for each task with python -m reproduction"
        )
    of_one = ("seed", "savedir", "support", "predict")
    if wrong := [f"--{name}" for name in of_one if getattr(settings, name) is not None]:
        raise InputError(f"--tasks draws the tasks of seeds 0 to N-1; leave out {listed(wrong)}")
    if settings.compare:
        read_tasks(settings.compare)  # before the work
    tasks = [
        draw(
            data, settings.n_way, settings.k_shot or 5, seed, settings.group_disjoint,
            settings.rare_split,
        )
        for seed in range(settings.tasks)
    ]  # fmt: skip
    if settings.temperature == "cv":
        require_calibratable(tasks[0])
    rare, shots = data.rare, tasks[0].k_shot
    classifier = classifier_of(settings, checkpoint)
    name = f"tasks_{classifier}_{tasks[0].n_way}way_{shots}shot_{len(tasks)}tasks"
    files = result_paths(settings, name)
    scored = {**rare.fingerprint(), "content": content_key([rare], settings.cache_folder)}
    if files[0].exists() and not settings.overwrite:
        previous = read_scores(files[0])
        others = ["other images"] * (previous.get("images") != scored)
        if resume.already_done(files, previous, settings, given, checkpoint, others):
            report_tasks(settings, previous, read_tasks(files[1]))
            print(f"already done: {files[0]}, {files[1]}")
            return
    else:
        refuse_to_overwrite(files[:1], settings.overwrite)
    rare = decoded(rare, checkpoint["args"]["image_size"], settings.cache_folder)
    used = {i for task in tasks for ids in task.support_ids for i in ids}
    support = rare.take(i for i in rare.ids if i in used)
    encoder = frozen(settings, checkpoint, device)
    predict, temperatures = predictor_of(settings, checkpoint, encoder, support, rare)
    rows, shared = [], []
    for task in tqdm(tasks, desc="tasks", unit="task", disable=None):
        query = task.query(rare)
        found = score_of(query, predict(task.support(rare), query))
        rows.append(task_row(task, found | temperature_of(temperatures)))
        shared.append({"query": len(query), **task.shared(rare, data.groups)})
    known = [one for one in shared if one["groups"] is not None]
    total = {name: sum(one[name] or 0 for one in shared) for name in shared[0]}
    scores = {
        "scores": summary(rows), "classifier": classifier, "images": scored, "data": data.to_dict(),
        "shared_with_support": total | ({} if known else {"groups": None}),
        **about_run(settings, checkpoint),
    }  # fmt: skip
    write_results(files, scores, tasks_csv(rows))
    report_tasks(settings, scores, rows)


def report_tasks(settings: Testing, scores: dict, rows: list[dict]) -> None:
    """Print the scores over all tasks, and the difference from those of --compare."""
    shared = scores["shared_with_support"]
    size = f"{shared['query']:,} query images, none from the support set{group_word(shared)}"
    print(
        f"{len(rows)} {settings.k_shot or 5}-shot tasks; classifier: {scores['classifier']}; {size}"
    )
    for note in notes_of(shared, shared["query"]):
        print(note)
    print(summary_table(scores["scores"]))
    if settings.compare:
        try:
            found = paired(rows, read_tasks(settings.compare))
        except InputError as error:
            raise InputError(f"--compare {settings.compare}: {error}") from None
        print(f"\ncompared with {settings.compare}, on the same tasks")
        print(paired_table(found))


def group_word(shared: dict) -> str:
    """Return what the scores say about the groups of `Task.shared`."""
    return {None: "; groups unknown", 0: " or its groups"}.get(shared["groups"], "")


def result_paths(settings: Testing, name: str) -> tuple[Path, Path]:
    """Return the paths of the JSON and the CSV file called `name`."""
    checkpoint = settings.resume
    folder = settings.output or (checkpoint if checkpoint.is_dir() else checkpoint.parent)
    return folder / f"{name}.json", folder / f"{name}.csv"


def read_scores(file: Path) -> dict:
    """Return the contents of an earlier JSON file. Raises InputError if it is invalid."""
    with refusing(f"{file} is invalid; replace it with --overwrite"):
        previous = parse_json(file.read_bytes(), newest=0)
        if "task" in previous:
            Task.from_dict(previous["task"])
        return previous


def adapts(checkpoint: dict) -> bool:
    """Return whether a checkpoint's model was meta-trained, and so adapts to a task by itself."""
    return STAGES[checkpoint["stage"]].adapts is not None


def classifier_of(settings: Testing, checkpoint: dict) -> str:
    """Return what classifies the images, as files and messages name it."""
    if adapts(checkpoint):
        return "adapted"
    return "direct" if settings.load_cla else "lr"


def frozen(
    settings: Testing, checkpoint: dict, device: torch.device
) -> FrozenEncoder | MetaLearner:
    """Return the frozen encoder of a checkpoint, or its meta-trained model."""
    make = MetaLearner if adapts(checkpoint) else FrozenEncoder
    workers = readers(settings.workers)
    return make(checkpoint, device, settings.amp, settings.batch_size, workers)


def predictor_of(
    settings: Testing,
    checkpoint: dict,
    encoder: FrozenEncoder | MetaLearner,
    support: ImageSet | None,
    query: ImageSet,
) -> tuple[Predictor, list[float]]:
    """Encode the images of one task or many; return what classifies a task's query set, and the
    list to which it adds the temperature of each task with --temperature cv.

    By the student's classifier, or with `support`, the support images of all tasks, by a logistic
    regression fitted on those of the task, or by the meta-trained model adapted to them.
    """
    if isinstance(encoder, MetaLearner):
        if settings.tasks:  # all of them are of the images `query`
            return adaptations(encoder, query), []
        return lambda support, query: encoder.predict(query, support, progress="testing"), []
    if support is None:
        return direct(encoder, student_classifier(checkpoint), query), []
    found: list[float] = []
    temperatures = found if settings.temperature == "cv" else None
    predict = regressions(
        encoder, support, query, settings.augnum, settings.normalize, temperatures
    )
    return predict, found


def temperature_of(temperatures: list[float]) -> dict[str, float]:
    """Return the last temperature as the JSON file tells it; nothing without --temperature cv."""
    return {"temperature": temperatures[-1]} if temperatures else {}


def find_task(settings: Testing, checkpoint: dict, data: Collection | None) -> Task:
    """Return the checkpoint's task, else that in --savedir, else one drawn with --seed.

    Or the one that --support chooses. Raises InputError if it conflicts with the settings or the
    classifier.
    """
    chosen = None
    if settings.support:
        if data is None or settings.savedir:
            raise InputError("--support needs the data folder, and no --savedir")
        chosen = choose(data, settings.support, settings.group_disjoint)
    if checkpoint["task"]:
        task, where = Task.from_dict(checkpoint["task"]), settings.resume
        if settings.savedir and load_task(settings.savedir) != task:
            raise InputError(
                f"{settings.resume} was trained for another task than that in {settings.savedir}"
            )
        if chosen and not chosen.same_support(task):
            raise InputError(
                f"{settings.resume} was trained for another task, {task}, than that of --support "
                f"{settings.support}"
            )
    elif settings.savedir:
        task, where = load_task(settings.savedir), settings.savedir
    elif chosen:
        return chosen
    elif settings.load_cla:
        raise InputError(
            f"{settings.resume} does not contain its task; pass the folder of its {TASK_FILE} as "
            "--savedir"
        )
    else:
        return draw(
            data, settings.n_way, settings.k_shot or 5, settings.seed or 0,
            settings.group_disjoint, settings.rare_split,
        )  # fmt: skip
    if settings.group_disjoint or settings.rare_split:
        raise InputError(
            f"--group-disjoint and --rare-split apply to drawing a task, but {where} has one; "
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
