"""Write a table as Markdown and CSV: our scores beside the paper's."""

import contextlib
import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from common.errors import listed
from common.files import csv_text, write_utf8
from moco.checkpoint import load_checkpoint
from moco.config import IMAGE_SIZE
from moco.scores import TASK_SCORES, exact_ties, mean_interval, signed_rank_p
from plots.read import read_log
from trainer.config import EPOCHS
from trainer.log import LOG

from .plan import jobs_of
from .study import DIC_INTERVAL, IMAGES, METHODS, SEEDS, Study

BEST = ("hybrid_dic", "direct")  # the papers' method


def read_scores(study: Study) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """Return the finished scores: each metric in percent, by (method, shot) and seed."""
    cells: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for method, shot, seed in study.cells():
        for file in study.score_folder(method, shot, seed).glob("test_*.json"):
            scores = json.loads(file.read_text(encoding="utf-8"))
            values = [scores["accuracy"], *scores["per_class"].values(), scores["average"]]
            percent = dict(zip(study.table.metrics, (100 * value for value in values)))
            cells.setdefault((method, shot), {})[seed] = percent
    return cells


def read_many(study: Study) -> dict[tuple[str, str], dict[str, dict]]:
    """Return the finished scores over many tasks: `mean_interval` of each, by (method, shot)."""
    found = {}
    for method, shot in study.many():
        file = study.many_file(method, shot)
        if file.exists():
            found[method, shot] = json.loads(file.read_text(encoding="utf-8"))["scores"]
    return found


def many_tasks(study: Study) -> list[list[str]]:
    """Return the rows of accuracies over many tasks, mean ± 95 % confidence interval."""
    rows = [["method", "shots", *TASK_SCORES.values()]]
    for (method, shot), scores in read_many(study).items():
        found = (scores[name] for name in TASK_SCORES)
        values = [f"{100 * one['mean']:.1f} ± {100 * one['ci95']:.1f}" for one in found]
        rows.append([method, shot, *values])
    return rows


def mean_std(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (None for a single value)."""
    values = list(values)
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def cell(mean: float, std: float | None, runs: int | None = None, of: int | None = None) -> str:
    """Format `mean (std)`, with `runs` of `of` if runs are missing; for the paper both are None."""
    details = ["" if std is None else f"{std:.1f}"]
    if runs != of:
        details.append(f"{runs} of {of} runs")
    text = "; ".join(filter(None, details))
    return f"{mean:.1f} ({text})" if text else f"{mean:.1f}"


# Backbones that the papers cite, and those that their code uses instead.
RELEASED_BACKBONES = {"conv4": "conv4_released"}


def heading(study: Study) -> str:
    """Return the heading: the table, and how ours is narrowed compared with the papers'."""
    table, released = study.table, RELEASED_BACKBONES.get(study.table.arch)
    narrower = []
    if study.images not in (None, IMAGES.get(table.dataset)) and not study.own:
        narrower.append(f"{study.images:,} images instead of {IMAGES[table.dataset]:,}")
    settings = {
        f"{study.arch} instead of {table.arch}": study.arch not in (table.arch, released),
        f"{study.image_size} pixels instead of {IMAGE_SIZE}": study.image_size != IMAGE_SIZE,
        f"{study.epochs} epochs instead of {EPOCHS}": study.epochs != EPOCHS,
        "mixed precision": study.amp,
        f"seeds {', '.join(map(str, study.seeds))}": study.seeds != SEEDS,
        f"shots {', '.join(study.shots)} of {', '.join(table.shots)}":
            list(study.shots) != table.shots,
        f"methods {', '.join(study.methods)}": list(study.methods) != table.methods,
        "group-disjoint tasks": study.group_disjoint,
        "copies counted as images": study.allow_duplicates,
        "without unreadable images": "--skip-unreadable" in study.machine,
        "scored with BatchNorm's statistics of each image": study.norm_statistics == "image",
        "too short for DIC, whose rows do without it": study.epochs <= DIC_INTERVAL,
    }  # fmt: skip
    narrower += [text for text, applies in settings.items() if applies]
    block = released if study.arch == released else table.arch
    note = ", the block that the authors ran" if block != table.arch else ""
    title = f"Table {table.number}: {table.dataset}, {block}{note}"
    if study.own:
        images = f", {study.images:,} images" if study.images else ""
        title = f"Methods of table {table.number} on {table.dataset}{images}, {block}"
    title += f", {table.n_way}-way"
    return title + (f" — narrowed: {'; '.join(narrower)}" if narrower else "")


def comparison(study: Study) -> list[list[str]]:
    """Return the rows of total accuracies, one per method of the study; for each of its shots ours,
    the paper's, and the difference in the paper's standard deviations."""
    scores = read_scores(study)
    columns = ("ours",) if study.own else ("ours", "paper", "Δ/std")
    head = [f"{shot}-shot {name}" for shot in study.shots for name in columns]
    rows = [["method", *head]]
    for method in study.methods:
        row = [method]
        for shot in study.shots:
            row += _compared(study, scores, method, shot, "accuracy")[: len(columns)]
        rows.append(row)
    return rows


def _compared(study: Study, scores: dict, method: str, shot: str, metric: str) -> list[str]:
    if (method, shot) not in study.table.paper:
        return ["", "", ""]
    paper_mean, paper_std = study.table.paper[method, shot].get(metric, (math.nan, None))
    paper = cell(paper_mean, paper_std)
    runs = scores.get((method, shot))
    if not runs:
        return ["not run", paper, ""]
    mean, std = mean_std(run[metric] for run in runs.values())
    difference = f"{(mean - paper_mean) / paper_std:+.1f}" if paper_std else ""
    return [cell(mean, std, len(runs), len(study.seeds)), paper, difference]


def per_class(study: Study) -> list[list[str]]:
    """Return the rows of per-class accuracies and their mean, `ours / paper's`."""
    metrics, scores = study.table.metrics[1:], read_scores(study)
    rows = [["method", "shots", *metrics]]
    for (method, shot), runs in scores.items():
        paper = study.table.paper[method, shot]
        row = [method, shot]
        for metric in metrics:
            mean, std = mean_std(run[metric] for run in runs.values())
            theirs = f" / {paper[metric][0]:.1f}" if metric in paper else " / –"
            row.append(cell(mean, std, len(runs), len(study.seeds)) + theirs * (not study.own))
        rows.append(row)
    return rows


def significance(study: Study) -> list[list[str]]:
    """Return the rows of the papers' method against each other one, on the total accuracies of the
    same tasks, over all shots and seeds: mean difference with its 95 % interval, and p of a
    two-sided Wilcoxon signed-rank test."""
    accuracies: dict[str, dict[tuple[str, int], float]] = {method: {} for method in study.methods}
    for (method, shot), runs in read_scores(study).items():
        accuracies[method] |= {(shot, seed): run["accuracy"] for seed, run in runs.items()}
    ours = next((method for method in study.methods if METHODS[method] == BEST), "")
    rows = [[f"{ours} against", "tasks", "mean difference", "p"]]
    best = accuracies.get(ours, {})
    for method, other in accuracies.items():
        tasks = sorted(best.keys() & other.keys())
        if tasks and study.model_of(method) != study.model_of(ours):
            differences = exact_ties(best[task] - other[task] for task in tasks)
            p = signed_rank_p(differences)
            mean = f"{differences.mean():+.1f}"
            if len(tasks) > 1:
                mean += f" ± {mean_interval(differences)['ci95']:.1f}"
            rows.append([method, str(len(tasks)), mean, f"{p:.3f}"])
    return rows


def made_with(study: Study) -> list[str]:
    """Return the commits, torch versions, machines and training hours behind the scores; repeated
    epochs count once."""
    made_by, seconds, logged = [], 0.0, 0
    for job in jobs_of(study):
        if job.epochs is not None and job.done():
            made_by.append(load_checkpoint(job.folder)["made_by"])
            if (job.folder / LOG).exists():
                _, epochs = read_log(job.folder / LOG)
                seconds += sum(values.get("seconds", 0) for values in epochs.values())
                logged += 1
    lines = []
    for key in ("commit", "torch", "machine"):
        values = dict.fromkeys(str(made.get(key, "not recorded")) for made in made_by)
        lines.append(f"{key}: {', '.join(values) or 'none yet'}")
    without = f" ({lost} without a log)" if (lost := len(made_by) - logged) else ""
    return [*lines, f"{len(made_by)} training runs{without}, {seconds / 3600:.1f} hours in total"]


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, its head first."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


def _csv(study: Study) -> str:
    """Return one line per cell and metric, in percent: ours, the number of runs, the paper's."""
    rows: list[list[object]] = [
        "table dataset arch image_size epochs amp lesion_disjoint method n_way k_shot metric "
        "ours_mean ours_std runs paper_mean paper_std difference_in_std "
        "tasks_mean tasks_ci95 tasks".split()
    ]
    scores, many, table = read_scores(study), read_many(study), study.table
    fields = [table.number, table.dataset, study.arch, study.image_size, study.epochs, study.amp]
    for (method, shot), paper in table.paper.items():
        runs = scores.get((method, shot), {})
        over = many.get((method, shot), {})
        for metric in table.metrics if runs else paper:
            paper_mean, paper_std = paper.get(metric, (None, None))
            mean, std = mean_std(run[metric] for run in runs.values()) if runs else (None, None)
            delta = (mean - paper_mean) / paper_std if runs and paper_std else None
            numbers = ["" if x is None else f"{x:.2f}" for x in (mean, std)]
            rows.append(
                [*fields, study.group_disjoint, method, table.n_way, shot, metric, *numbers,
                 len(runs), paper_mean, paper_std, "" if delta is None else f"{delta:.2f}",
                 *_interval(over, metric)]
            )  # fmt: skip
    return csv_text(rows)


def _interval(over: dict[str, dict], metric: str) -> list[object]:
    """Return mean, half the 95 % interval and number of tasks of a metric, in percent."""
    classes = [name for name in over if name.startswith("accuracy_")]
    names = {"accuracy": "accuracy", "avg": "balanced_accuracy"}
    names |= {f"A{n}": name for n, name in enumerate(classes, 1)}
    if not (values := over.get(names.get(metric, ""))):
        return ["", "", ""]
    return [f"{100 * values['mean']:.2f}", f"{100 * values['ci95']:.2f}", values["tasks"]]


def _runs_csv(study: Study) -> str:
    """Return one line per run, in percent."""
    rows: list[list[object]] = [["method", "k_shot", "seed", *study.table.metrics]]
    for (method, shot), runs in read_scores(study).items():
        for seed, run in sorted(runs.items()):
            rows.append([method, shot, seed, *(f"{value:.2f}" for value in run.values())])
    return csv_text(rows)


def _before(path: Path) -> set[tuple[str, str, str]]:
    """Return method, shots and seed, or number of many tasks, of the scores in an earlier table;
    none if it is missing or not as it was written. `path`: without the ends of the files' names."""
    found: set[tuple[str, str, str]] = set()
    for end in ("_runs.csv", ".csv"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = path.with_name(path.name + end).read_text(encoding="utf-8")
            for row in csv.DictReader(text.splitlines()):
                of = f"seed {row['seed']}" if end == "_runs.csv" else f"{row['tasks']} tasks"
                if of != " tasks":
                    found.add((row["method"], row["k_shot"], of))
    return found


def write_table(study: Study, command: str) -> str:
    """Write tableN.md, tableN.csv and tableN_runs.csv to the study's folder; return the first."""
    parts = [
        f"# {heading(study)}",
        "Total accuracy on the query set in percent: mean (standard deviation) over the tasks of "
        f"seeds {', '.join(map(str, study.seeds))}; ours is the sample standard deviation."
        + (not study.own)
        * " Δ/std: ours minus the paper's, in the paper's standard deviations.",
        markdown(comparison(study)),
        "## Accuracy of each class",
        "In percent; A1, A2, … are the rare classes in the order named; avg is their mean."
        if study.own
        else "In percent, ours / paper's; A1, A2, … in the papers' order; avg is their mean.",
        markdown(per_class(study)),
    ]
    if len(rows := many_tasks(study)) > 1:
        parts += [
            f"## Over {study.tasks} tasks",
            "Rows that need no training by task, on the tasks of seeds 0 to "
            f"{study.tasks - 1}: mean ± 95 % confidence interval, in percent.",
            markdown(rows),
        ]
    if len(tests := significance(study)) > 1:
        parts += [
            "## Wilcoxon signed-rank test",
            "Total accuracy on the same tasks, all shots pooled, two-sided; mean difference ± 95 % "
            "confidence interval.",
            markdown(tests),
        ]
    parts += ["## Made with", f"    {command}", "\n".join(f"- {x}" for x in made_with(study))]
    text = "\n\n".join(parts) + "\n"
    name = f"table{study.table.number}" + "_disjoint" * study.group_disjoint
    name += "_image_statistics" * (study.norm_statistics == "image")
    asked = {(method, shot, f"seed {seed}") for method, shot, seed in study.cells()}
    asked |= {(method, shot, f"{study.tasks} tasks") for method, shot in study.many()}
    if others := sorted(_before(study.root / name) - asked):
        cells = {cell[:2] for cell in asked}
        names = listed(dict.fromkeys(
            f"{method} {shot}-shot" + f", {of}" * ((method, shot) in cells)
            for method, shot, of in others
        ))  # fmt: skip
        print(
            f"note: {name}.md had more before: {names}; the command that made it, with --only "
            "table, writes that again"
        )
    files = {".md": text, ".csv": _csv(study), "_runs.csv": _runs_csv(study)}
    for suffix, content in files.items():
        write_utf8(study.root / f"{name}{suffix}", content)
    return text
