"""Draw the figures, one function each."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from datasets import Collection
from datasets.episode import Task
from datasets.images import read_image
from datasets.pseudo import PseudoLabels
from moco.calibration import reliability
from moco.checkpoint import MustAdapt

from .read import (
    Result,
    Run,
    Tasks,
    most_similar,
    read_predictions,
    short_names,
    worst_mistakes,
)
from .style import (
    CLASS_COLORS,
    LETTER,
    RUN_COLORS,
    add_legend,
    class_label,
    color_of,
    fitted,
    grid,
    legend_below,
    letters,
    marker_of,
)

CURVES = {  # key in the log: axis label, scale factor
    "loss": ("Loss", 1),
    "loss_con": ("Contrastive loss", 1),
    "loss_cls": ("Classification loss", 1),
    "accuracy": ("Training\naccuracy (%)", 100),
    "acc1": ("Contrastive\naccuracy (%)", 100),
    "agreement": ("Agreement with\npseudo labels (%)", 100),
    "knn_balanced": ("k-NN balanced\naccuracy (%)", 100),
}
CONTRASTIVE = ("loss", "loss_con")  # which a drop of the learning rate may raise
DASHES = ["-", "--", ":", "-."]
Embed = Callable[..., list[np.ndarray]]  # (checkpoint, *sets) -> the embeddings of each set
LOOKALIKES = 5  # misclassified images in a figure


def draw_curves(runs: Sequence[Run]):
    """Draw losses, k-NN score and agreement by epoch, a line per run (the papers' Figs. 3, 4)."""
    from matplotlib.lines import Line2D

    names = short_names([run.folder for run in runs])
    drawn = {key: [run.line(key) for run in runs] for key in CURVES}
    drawn = {key: lines for key, lines in drawn.items() if any(lines)}
    if "loss_con" in drawn:  # the contrast is stage (a)'s whole loss
        alone = [run.line("loss") if run.about["stage"] == "moco" else {} for run in runs]
        drawn["loss_con"] = [line or other for line, other in zip(drawn["loss_con"], alone)]
    figure, axes = grid(len(drawn), *((3.4, 2.3) if len(drawn) == 1 else (2.33, 1.75)))
    handles: dict[str, object] = {}
    for ax, (key, lines) in zip(axes, drawn.items()):
        text, factor = CURVES[key]
        ax.set(xlabel="Epoch", ylabel=text)
        ax.locator_params(axis="x", integer=True, nbins=5)
        drops = {n: times for run in runs for n, times in run.drops().items()}
        for n, times in drops.items() if key in CONTRASTIVE else ():  # see docs/training.md
            ax.axvline(n - 0.5, color="grey", linestyle=":", linewidth=0.8)
            ax.annotate(f"rate\n÷ {times:.0f}", (n - 0.5, 1), (0, 1), ha="center", va="bottom",
                        xycoords=("data", "axes fraction"), textcoords="offset points", size=6,
                        color="grey")  # fmt: skip
        for i, (name, line) in enumerate(zip(names, lines)):
            style = {
                "color": RUN_COLORS[i % len(RUN_COLORS)],
                "linestyle": DASHES[i // len(RUN_COLORS) % len(DASHES)],
            }
            values = [value * factor for value in line.values()]
            marker = "o" if 0 < len(line) <= 25 else None  # by panel: not in the legend
            ax.plot(list(line), values, label=name, marker=marker, markersize=2.5, **style)
            handles[name] = Line2D([], [], **style)
    if len(handles) > 1:
        legend_below(figure, list(handles.items()), columns=3)
    return figure


def draw_temperatures(runs: Sequence[Run]):
    """Draw the class temperatures by epoch, eqs. (6)-(9), a panel per run."""
    alone = len(runs) == 1
    figure, axes = grid(len(runs), *((3.4, 2.3) if alone else (2.33, 1.75)), sharey=True)
    handles: dict[str, tuple[str, object]] = {}
    for ax, run, name in zip(axes, runs, short_names([run.folder for run in runs])):
        for label, line in run.temperatures().items():
            color = color_of(label, run.task.rare)
            style = {"color": color, "marker": "o" if len(line) == 1 else None, "markersize": 2.5}
            (step,) = ax.step(list(line), list(line.values()), linewidth=1.3, **style)
            handles[label] = class_label(label, 40), step
        ax.set(xlabel="Epoch", ylabel="Class temperature")
        ax.set_title("" if alone else fitted(name, 1.8))
        ax.locator_params(axis="x", integer=True, nbins=5)
        ax.label_outer()
    legend_below(figure, list(handles.values()), columns=3)
    return figure


def draw_pseudo_labels(labels: dict[Path, PseudoLabels]):
    """Draw the class distribution of hard pseudo labels (Fig. 5), a bar per task.

    Raises InputError if the tasks differ in their classes.
    """
    names = zip(short_names(list(labels)), labels.values())
    bars = [(Task.from_dict(found.about["task"]), name, found) for name, found in names]
    bars.sort(key=lambda bar: (bar[0].k_shot or math.inf, bar[0].seed or 0, bar[1]))
    tasks = [task for task, _, _ in bars]
    if len({task.classes for task in tasks}) > 1:
        raise InputError("these pseudo labels have different classes; name folders of one data set")
    shots = list(dict.fromkeys(task.shots for task in tasks))
    figure, (ax,) = grid(1, min(7, max(3.4, 1.6 + 0.42 * len(bars))), 2.3)
    positions = np.arange(len(bars)) + 0.6 * np.array([shots.index(task.shots) for task in tasks])
    counts = np.array([np.bincount(bar[2].hard(), minlength=tasks[0].n_way) for bar in bars])
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    bottoms = shares.cumsum(axis=1) - shares
    entries = []
    for label, name in enumerate(tasks[0].classes):
        style = {"color": color_of(name, tasks[0].rare), "ec": "white"}
        drawn = ax.bar(positions, shares[:, label], 0.85, bottoms[:, label], **style)
        entries.append((class_label(name), drawn))
        text = [f"{share:.0f}" if share >= 4.5 else "" for share in shares[:, label]]
        ax.bar_label(drawn, text, label_type="center", size=7)
    repeated = len({(task.shots, task.seed) for task in tasks}) < len(tasks)
    ticks = [
        class_label(name, 9) if repeated or task.chosen else f"{task.seed}"
        for task, name, _ in bars
    ]
    ax.set_xticks(positions, ticks)
    ax.tick_params(axis="x", length=0)
    for shot in shots:
        middle = np.mean([x for x, task in zip(positions, tasks) if task.shots == shot])
        ax.text(middle, 103, shot, ha="center", va="bottom")
    ax.set(ylabel="Hard pseudo labels (%)", ylim=(0, 100), xlim=(-0.7, positions[-1] + 0.7))
    ax.set_xlabel("" if repeated else "Seed of the task")
    side = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "handlelength": 1}
    add_legend(ax, entries, reverse=True, labelspacing=0.9, **side)
    return figure


def panels(
    results: dict[tuple, list[Result]], width: float
) -> Iterator[tuple[str, tuple[str, ...], list[Result]]]:
    """Yield the title of a panel of `width` inches, what a group of results shares, the classes and
    the group."""
    names = short_names([folder for folder, *_ in results])
    for name, ((_, classifier, shots, classes), group) in zip(names, results.items()):
        tasks = f"{len(group)} task{'s' * (len(group) > 1)}"
        classifier = "LR" if classifier == "lr" else classifier  # as in the papers
        words = (shots, classifier, group[0].how, tasks)
        title = fitted(", ".join(filter(None, words)), width - 0.1)
        if len(set(names)) > 1:
            title = f"{fitted(name, width - 0.3)}\n{title}"
        yield title, classes, group


def draw_confusion(results: dict[tuple, list[Result]]):
    """Draw confusion matrices as shares of the true class and image counts, a panel per group of
    results, summed over the group."""
    n_way = max(len(classes) for *_, classes in results)
    alone = len(results) == 1
    size = max(2.33, 0.55 * n_way + 0.7) if not alone else max(2.9, 0.55 * n_way + 1)
    figure, axes = grid(len(results), size, size + 0.25, max(1, min(3, int(7.1 / size))))
    for ax, (title, classes, group) in zip(axes, panels(results, size)):
        counts = np.sum([result.confusion for result in group], axis=0)
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (i, j), share in np.ndenumerate(shares):
            color = "white" if share > 70 else "black"
            text = f"{share:.0f} %\n{counts[i, j]}"
            ax.text(j, i, text, color=color, ha="center", va="center", size=7.5)
        short = [class_label(label, 9) for label in classes]
        longest = max(letters(word) for text in short for word in text.split())
        rotated = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        fits = LETTER * longest < 0.9 * (size - 0.8) / len(classes)
        ax.set_xticks(range(len(classes)), short, **({} if fits else rotated))
        ax.set_yticks(range(len(classes)), short)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set(xlabel="Predicted class", ylabel="True class", title="" if alone else title)
    return figure


def draw_reliability(results: dict[tuple, list[Result]]):
    """Draw reliability diagrams (Guo et al. 2017), a panel per group of results, with all query
    images of the group: the accuracy by bin of confidence, the share of images in it, and the
    expected calibration error."""
    alone = len(results) == 1
    size = 3.0 if alone else 2.33
    figure, axes = grid(len(results), size, size + 0.5)
    for ax, (title, classes, group) in zip(axes, panels(results, size)):
        rows = [row for result in group for row in read_predictions(result)]
        truth = np.array([classes.index(row["truth"]) for row in rows])
        bins = reliability(p := np.array([row["p"] for row in rows]), truth)
        edges = np.linspace(0, 1, len(bins.images) + 1)
        filled = bins.images > 0
        left, accuracy = edges[:-1][filled], bins.accuracy[filled]
        bar = {"width": edges[1], "align": "edge", "lw": 0.5}
        shown = {
            "accuracy": ax.bar(left, accuracy, color=CLASS_COLORS[1], ec="white", **bar),
            "gap to the mean confidence": ax.bar(
                left, bins.confidence[filled] - accuracy, bottom=accuracy, color="none",
                ec=RUN_COLORS[1], hatch="//////", **bar,
            ),
            "share of the images": ax.stairs(bins.images / len(rows), edges, color="black"),
            "calibrated": ax.plot([0, 1], [0, 1], color="grey", linestyle=":")[0],
        }  # fmt: skip
        hits, confidence = (truth == p.argmax(axis=1)).mean(), p.max(axis=1).mean()
        values = {"ECE": bins.error(), "accuracy": hits, "confidence": confidence}
        ece, *rest = (f"{name} {100 * value:.1f} %" for name, value in values.items())
        ax.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1))
        ax.set_title(f"{title}\n{ece}\n{', '.join(rest)}", size=7)
        ax.label_outer()
    legend_below(figure, list(shown.items()), columns=2 if alone else 4)
    return figure


def task_names(tasks: Sequence[Tasks]) -> list[str]:
    """Return what tells scores over many tasks apart in a legend: folder and unusual settings, then
    the number of tasks, or the file if these are the same."""
    names = short_names([one.path.parent for one in tasks])
    names = [", ".join(filter(None, (name, one.how))) for name, one in zip(names, tasks)]
    if len({len(one.rows) for one in tasks}) > 1:
        names = [f"{name}, {len(one.rows)} tasks" for name, one in zip(names, tasks)]
    labels = [(one.shots, name) for name, one in zip(names, tasks)]
    files = (one.path.stem for one in tasks)
    return [
        f"{name}, {file}" if labels.count(label) > 1 else name
        for name, label, file in zip(names, labels, files)
    ]


def draw_tasks(tasks: Sequence[Tasks]):
    """Draw how the accuracy is distributed over many tasks, a panel per number of shots: a
    histogram per method, and its mean with the 95 % interval in the legend."""
    panels: dict[int, list[tuple[str, Tasks]]] = {}
    for name, found in zip(task_names(tasks), tasks):
        panels.setdefault(found.shots, []).append((name, found))
    alone = len(panels) == 1
    size = (3.4, 2.6) if alone else (2.33, 2.4)
    figure, axes = grid(len(panels), *size, sharex=True)
    percent = [100 * row["accuracy"] for found in tasks for row in found.rows]
    bins = np.linspace(min(percent), max(*percent, min(percent) + 1), 25)
    for ax, shots in zip(axes, sorted(panels)):
        for i, (name, found) in enumerate(panels[shots]):
            color, values = RUN_COLORS[i % len(RUN_COLORS)], found.scores["accuracy"]
            mean, half = 100 * values["mean"], 100 * values["ci95"]
            label = f"{mean:.1f} ± {half:.1f} %" + f", {name}" * (len(panels[shots]) > 1)
            label = fitted(label, size[0] - 0.5)
            # Over the areas, in different dashes, equal histograms and means are all visible.
            line = {"color": color, "linestyle": DASHES[i % len(DASHES)], "zorder": 2}
            accuracies = [100 * row["accuracy"] for row in found.rows]
            ax.hist(accuracies, bins, histtype="stepfilled", color=color, alpha=0.3)
            ax.hist(accuracies, bins, histtype="step", **line)
            ax.axvline(mean, label=label, **line)
        counts = {len(found.rows) for _, found in panels[shots]}
        of = " or ".join(map(str, sorted(counts)))
        ax.set(xlabel="Accuracy (%)", ylabel=f"Tasks of {of}", title=f"{shots}-shot")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), fontsize=7)
    return figure


def draw_tsne(folders: Sequence[Path], tasks: Sequence[Task], images: Collection, embed: Embed):
    """Draw t-SNE of query and support features (Fig. 6), coloured by true class, a panel per run in
    `folders`."""
    from matplotlib.lines import Line2D
    from sklearn.manifold import TSNE

    panels = []
    for folder, task in zip(folders, tasks):
        sets = (task.query(images.rare, complete=False), task.support(images.rare))
        try:
            panels.append((folder, task, sets, np.concatenate(embed(folder, *sets))))
        except MustAdapt as error:
            print(f"note: {folder} is not in tsne: {error}")
    if not panels:
        raise InputError("no encoder has features to draw")
    alone = len(panels) == 1
    figure, axes = grid(len(panels), *((3.4, 3.4) if alone else (2.33, 2.5)))
    handles: dict[str, tuple[str, object]] = {}
    names = short_names([folder for folder, *_ in panels])
    for ax, name, (_, task, sets, embeddings) in zip(axes, names, panels):
        perplexity = min(30, (len(embeddings) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=0)
        points = np.split(tsne.fit_transform(embeddings), [len(sets[0])])
        styles = (
            {"s": 11, "lw": 0.25, "alpha": 0.85, "ec": "white"},
            {"s": 60, "lw": 0.9, "zorder": 3, "ec": "black"},
        )
        for label, name_of_class in enumerate(task.classes):
            style = {"color": color_of(name_of_class, task.rare)}
            style["marker"] = marker_of(name_of_class, task.rare)
            for part, xy, size in zip(sets, points, styles):
                ax.scatter(*xy[np.array(part.labels) == label].T, **style, **size)
            handle = Line2D([], [], linestyle="", markersize=4, **style)
            handles[name_of_class] = class_label(name_of_class, 40), handle
        ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        ax.set_title("" if alone else fitted(name, 1.8))
        ax.set_box_aspect(1)
    large = {"marker": "o", "markersize": 7, "mfc": "white", "mec": "black", "mew": 0.9}
    entries = [*handles.values(), ("support image", Line2D([], [], linestyle="", **large))]
    legend_below(figure, entries, columns=2 if alone else 4)
    return figure


def draw_lookalikes(result: Result, images: Collection, embed: Embed):
    """Draw the most confident mistakes (Fig. 7), each above the most similar base image and
    the most similar support image of the predicted class."""
    mistakes, task = worst_mistakes(result, LOOKALIKES), result.task
    base, support = images.base, task.support(images.rare)
    ids = (*base.ids, *images.rare.ids)
    query = images.rare.take([row["image"] for row in mistakes])
    statistics = result.scores["args"].get("norm_statistics", "running")
    query_embeddings, base_embeddings, support_embeddings = embed(
        result.checkpoint, query, base, support, norm_statistics=statistics
    )
    columns = len(mistakes)
    figure, axes = grid(3 * columns, 1.3 + 0.5 / columns, 5 / 3, across=columns)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    rows = ("Query image", "Most similar\nbase image", "Most similar\nsupport image")
    for ax, text in zip(axes[::columns], rows):
        ax.set_ylabel(text)
    for column, (row, embedding) in enumerate(zip(mistakes, query_embeddings)):
        nearest, cosine = most_similar(embedding, base_embeddings)
        predicted = task.classes.index(row["prediction"])
        candidates = np.flatnonzero(np.array(support.labels) == predicted)
        candidate, support_cosine = most_similar(embedding, support_embeddings[candidates])
        truth, prediction = (class_label(row[key], 20) for key in ("truth", "prediction"))
        mistake = f"{truth}\n→ {prediction}\nprobability {row['confidence']:.2f}"
        of_base = f"{class_label(base.classes[base.labels[nearest]], 22)}\ncosine {cosine:.2f}"
        of_support = f"{class_label(row['prediction'], 22)}\ncosine {support_cosine:.2f}"
        shown = [(query, column, mistake), (base, nearest, of_base)]
        shown.append((support, candidates[candidate], of_support))
        for ax, (part, number, text) in zip(axes[column::columns], shown):
            picture = read_image(part.paths[number])
            picture.thumbnail((400, 400))
            ax.imshow(picture)
            ax.set_title(text, size=7)
            ax.set_xlabel(textwrap.fill(caption(part.ids[number], ids), 24), size=6)
    return figure


def caption(name: str, ids: Sequence[str]) -> str:
    """Return the file name of an image id, with the folders that tell it apart from others of the
    same file name in `ids`."""
    file = Path(name).name
    folders = [Path(i).parent for i in ids if i.rpartition("/")[2] == file]
    short = short_names(folders)[folders.index(Path(name).parent)]
    return str(Path(short, file)) if len(folders) > 1 else file
