"""Score an encoder on many tasks: test.py --tasks."""

from tqdm import tqdm

from common.errors import InputError, listed
from datasets import Collection
from datasets.content import content_key
from datasets.episode import Task
from datasets.open import note_on_shared
from moco.config import STAGES
from moco.evaluate import require_calibratable
from moco.scores import (
    paired,
    paired_table,
    read_tasks,
    summary,
    summary_table,
    task_key,
    task_row,
    tasks_csv,
)

from .run import Evaluation, group_word, score_of, write_results


def score_tasks(run: Evaluation, data: Collection) -> None:
    """Score an encoder on the tasks of seeds 0 to N-1, which `--seed` draws one by one.

    Encodes each image once. Raises InputError if a task is impossible.
    """
    settings = run.settings
    if settings.compare:
        read_tasks(settings.compare)  # before the work
    tasks = [run.drawn(data, seed) for seed in range(settings.tasks)]
    rare, first = data.rare, tasks[0]
    for task in tasks if settings.group_disjoint else tasks[:1]:
        task.query(rare, advice="fewer --k-shot leave some")  # before the work, too
    if settings.temperature == "cv":
        require_calibratable(first)
    name = f"{run.classifier}_{first.n_way}way_{first.k_shot}shot_{len(tasks)}tasks"
    files = run.paths(f"tasks_{name}")
    scored = {**rare.fingerprint(), "content": content_key([rare], settings.cache_folder)}
    if (previous := run.earlier(files)) is not None:
        others = ["other images"] * (previous.get("images") != scored)
        if not others and files[1].exists():
            keys = [row["task"] for row in read_tasks(files[1])]
            others += ["other tasks"] * (keys != [task_key(task) for task in tasks])
        if run.is_done(files, previous, others):
            report_tasks(run, previous, read_tasks(files[1]))
            print(f"already done: {files[0]}, {files[1]}")
            return
    rows, shared = task_rows(run, data, tasks)
    known = [one for one in shared if one["groups"] is not None]
    total = {name: sum(one[name] or 0 for one in shared) for name in shared[0]}
    total["without_group"] = max(one["without_group"] for one in shared)
    scores = {
        "scores": summary(rows), "classifier": run.classifier, "images": scored,
        "data": data.to_dict(), "shared_with_support": total | ({} if known else {"groups": None}),
        **run.about(),
    }  # fmt: skip
    write_results(files, scores, tasks_csv(rows), settings.overwrite)
    report_tasks(run, scores, rows)


def require_many(run: Evaluation) -> None:
    """Raise InputError if a model or command is of one task."""
    settings, checkpoint = run.settings, run.checkpoint
    if checkpoint["task"] or STAGES[checkpoint["stage"]].classifies:
        raise InputError(
            f"--tasks: {settings.resume} was trained for one task, whose support labels shaped its "
            "features; score an encoder of stage (a) or a baseline that knows no task, or train a "
            "model for each task with python -m reproduction"
        )
    of_one = ("seed", "savedir", "support", "predict")
    if wrong := [f"--{name}" for name in of_one if getattr(settings, name) is not None]:
        raise InputError(f"--tasks draws the tasks of seeds 0 to N-1; leave out {listed(wrong)}")


def task_rows(
    run: Evaluation, data: Collection, tasks: list[Task]
) -> tuple[list[dict], list[dict]]:
    """Return of each task the row of its scores, and what its query shares with its support set."""
    rare = run.settings.decoded(data.rare, run.image_size)
    used = {i for task in tasks for ids in task.support_ids for i in ids}
    support = rare.take(i for i in rare.ids if i in used)
    predict = run.predictor(run.encoder(), support, rare)
    rows, shared = [], []
    for task in tqdm(tasks, desc="tasks", unit="task", disable=None):
        query = task.query(rare)
        probabilities, calibrated = predict(task.support(rare), query)
        rows.append(task_row(task, score_of(query, probabilities) | calibrated))
        shared.append({"query": len(query), **task.shared(rare, data.groups)})
    return rows, shared


def report_tasks(run: Evaluation, scores: dict, rows: list[dict]) -> None:
    """Print the scores over all tasks, and the difference from those of --compare."""
    shared, compare = scores["shared_with_support"], run.settings.compare
    size = f"{shared['query']:,} query images, none from the support set{group_word(shared)}"
    shots = f"{run.settings.k_shot or 5}-shot"
    used = ", temperature cv" * (run.settings.temperature == "cv")
    print(f"{len(rows)} {shots} tasks; classifier: {scores['classifier']}{used}; {size}")
    note_on_shared(shared, shared["query"])
    print(summary_table(scores["scores"]))
    if compare:
        try:
            found = paired(rows, read_tasks(compare))
        except InputError as error:
            raise InputError(f"--compare {compare}: {error}") from None
        print(f"\ncompared with {compare}, on the same tasks")
        print(paired_table(found))
