"""The figures, a function each, as one would put them in a paper.

They have their size in print, with 8-point text: one column (3.4 inches) wide, or two (7).
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from datasets import Collection
from datasets.episode import Task
from datasets.images import read_image
from datasets.pseudo import PseudoLabels

from .read import Result, Run, most_similar, short_names, worst_mistakes

CURVES = {  # key in the log: what the axis says, and what to multiply with
    "loss": ("Loss", 1),
    "loss_con": ("Contrastive loss", 1),
    "loss_cls": ("Classification loss", 1),
    "accuracy": ("Training accuracy (%)", 100),
    "acc1": ("Contrastive\naccuracy (%)", 100),
    "agreement": ("Agreement with\npseudo labels (%)", 100),
    "knn_balanced": ("k-NN balanced\naccuracy (%)", 100),
}
# Colours that nearly everybody can tell apart (Okabe and Ito); runs and classes begin elsewhere.
RUN_COLORS = ["#0072B2", "#D55E00", "#009E73", "#000000", "#E69F00", "#56B4E9", "#CC79A7"]
CLASS_COLORS = [
    "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#0072B2", "#999999", "#F0E442",
    "#000000",
]  # fmt: skip
HOW = {"lr": "LR"}  # how test.py classified, as the papers say it
DASHES = ["-", "--", ":", "-."]
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "lines.linewidth": 1, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.handlelength": 1.6,
    "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figures",
}  # fmt: skip
Embed = Callable[..., list[np.ndarray]]  # (checkpoint, *sets): the embeddings of each set
LETTER = 0.065  # inches: the width of a letter of 8 points
LINE = 0.17  # and the height of a line
LOOKALIKES = 5  # misclassified images in a figure


def pyplot():
    """matplotlib, without a screen. Raises InputError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def grid(count: int, width: float, height: float, across: int = 3, **how):
    """A figure with `count` axes of that size in inches, at most `across` in a row."""
    columns = 2 if (count, across) == (4, 3) else min(count, across)
    rows = math.ceil(count / columns)
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
        **how,
    )
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def words(name: str, width: int = 13) -> str:
    """A class's name for people, in lines of about `width` letters."""
    return textwrap.fill(name.replace("_", " "), width, break_long_words=False)


def color_of(name: str, rare: dict) -> str:
    """A class's colour, the same in all figures; `rare`: the fingerprint of the rare set."""
    return CLASS_COLORS[list(rare["counts"]).index(name) % len(CLASS_COLORS)]


def below(figure, handles: Sequence, columns: int = 4) -> None:
    """A legend under the whole figure, which grows by it, in as many columns as there is room."""
    longest = max(len(handle.get_label()) for handle in handles)
    room = int(figure.get_figwidth() / (0.45 + LETTER * longest))
    columns = max(1, min(columns, room, len(handles)))
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + LINE * (rows - 1))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def has_curves(run: Run) -> bool:
    return any(run.line(key) for key in CURVES)


def draw_curves(runs: Sequence[Run]):
    """Losses, k-NN score and agreement over the epochs, a line a run (the papers' Figs. 3, 4)."""
    names = short_names([run.folder for run in runs])
    drawn = {key: [run.line(key) for run in runs] for key in CURVES}
    drawn = {key: lines for key, lines in drawn.items() if any(lines)}
    figure, axes = grid(len(drawn), *((3.4, 2.3) if len(drawn) == 1 else (2.33, 1.75)))
    handles: dict[str, object] = {}
    for ax, (key, lines) in zip(axes, drawn.items()):
        text, factor = CURVES[key]
        ax.set(xlabel="Epoch", ylabel=text)
        ax.locator_params(axis="x", integer=True, nbins=5)
        for number, (name, line) in enumerate(zip(names, lines)):
            how = {
                "color": RUN_COLORS[number % len(RUN_COLORS)],
                "linestyle": DASHES[number // len(RUN_COLORS) % len(DASHES)],
                "marker": "o" if len(line) <= 25 else None,
                "markersize": 2.5,
            }
            values = [value * factor for value in line.values()]
            (handles[name],) = ax.plot(list(line), values, label=name, **how)
    if len(handles) > 1:
        below(figure, list(handles.values()), columns=3)
    return figure


def draw_temperatures(runs: Sequence[Run]):
    """The classes' temperatures over the epochs, eqs. (6)-(9), a panel a run."""
    alone = len(runs) == 1
    figure, axes = grid(len(runs), *((3.4, 2.3) if alone else (2.33, 1.75)), sharey=True)
    handles: dict[str, object] = {}
    for ax, run, name in zip(axes, runs, short_names([run.folder for run in runs])):
        for label, line in run.temperatures().items():
            how = {"color": color_of(label, run.task.rare), "label": words(label, 40)}
            (handles[label],) = ax.step(list(line), list(line.values()), linewidth=1.3, **how)
        ax.set(xlabel="Epoch", ylabel="Class temperature", title="" if alone else name)
        ax.locator_params(axis="x", integer=True, nbins=5)
        ax.label_outer()
    below(figure, list(handles.values()), columns=3)
    return figure


def draw_pseudo_labels(labels: dict[Path, PseudoLabels]):
    """How the hard pseudo labels are spread over the classes (Fig. 5): a bar a task, by shots and
    seeds."""
    bars = []
    for (_, one), name in zip(labels.items(), short_names(list(labels))):
        bars.append((Task.from_dict(one.about["task"]), name, one))
    bars.sort(key=lambda bar: (bar[0].k_shot or math.inf, bar[0].seed, bar[1]))
    tasks = [task for task, _, _ in bars]
    if len({task.classes for task in tasks}) > 1:
        raise InputError("these pseudo labels are of different classes; name one set's folders")
    shots = list(dict.fromkeys(task.k_shot for task in tasks))
    figure, (ax,) = grid(1, min(7, max(3.4, 1.6 + 0.42 * len(bars))), 2.3)
    places = np.arange(len(bars)) + 0.6 * np.array([shots.index(task.k_shot) for task in tasks])
    counts = np.array([np.bincount(one.hard(), minlength=tasks[0].n_way) for _, _, one in bars])
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    bottoms = shares.cumsum(axis=1) - shares
    for label, name in enumerate(tasks[0].classes):
        how = {"color": color_of(name, tasks[0].rare), "label": words(name), "ec": "white"}
        drawn = ax.bar(places, shares[:, label], 0.85, bottoms[:, label], **how)
        text = [f"{share:.0f}" if share >= 4.5 else "" for share in shares[:, label]]
        ax.bar_label(drawn, text, label_type="center", size=7)
    twice = len({(task.k_shot, task.seed) for task in tasks}) < len(tasks)
    ax.set_xticks(places, [words(name, 9) if twice else f"{t.seed}" for t, name, _ in bars])
    ax.tick_params(axis="x", length=0)
    for shot in shots:
        middle = np.mean([place for place, task in zip(places, tasks) if task.k_shot == shot])
        ax.text(middle, 103, f"{shot or 'all'}-shot", ha="center", va="bottom")
    ax.set(ylabel="Hard pseudo labels (%)", ylim=(0, 100), xlim=(-0.7, places[-1] + 0.7))
    ax.set_xlabel("" if twice else "Seed of the task")
    side = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "handlelength": 1}
    ax.legend(reverse=True, labelspacing=0.9, **side)
    return figure


def draw_confusion(results: dict[tuple, list[Result]]):
    """Which classes are taken for which: share of the true class, and images; a panel a group of
    results, which are added up."""
    n_way = max(len(classes) for *_, classes in results)
    alone = len(results) == 1
    size = max(2.33, 0.55 * n_way + 0.7) if not alone else max(2.9, 0.55 * n_way + 1)
    figure, axes = grid(len(results), size, size + 0.25, max(1, min(3, int(7.1 / size))))
    names = short_names([folder for folder, *_ in results])
    for ax, name, ((_, how, shots, classes), group) in zip(axes, names, results.items()):
        counts = np.sum([result.confusion for result in group], axis=0)
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (i, j), share in np.ndenumerate(shares):
            color = "white" if share > 70 else "black"
            text = f"{share:.0f} %\n{counts[i, j]}"
            ax.text(j, i, text, color=color, ha="center", va="center", size=7.5)
        short = [words(label, 9) for label in classes]
        longest = max(len(word) for text in short for word in text.split())
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        fits = LETTER * longest < 0.9 * (size - 0.8) / len(classes)
        ax.set_xticks(range(len(classes)), short, **({} if fits else turned))
        ax.set_yticks(range(len(classes)), [words(label, 9) for label in classes])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        tasks = f"{len(group)} task{'s' * (len(group) > 1)}"
        told = f"{shots or 'all'}-shot, {HOW.get(how, how)}, {tasks}"
        told = f"{name}\n{told}" if len(set(names)) > 1 else told
        ax.set(xlabel="Predicted class", ylabel="True class", title="" if alone else told)
    return figure


def draw_tsne(folders: Sequence[Path], tasks: Sequence[Task], images: Collection, embed: Embed):
    """The query features in two dimensions (Fig. 6), by true class, with the support set; a panel
    a run, which is in one of `folders`."""
    from matplotlib.lines import Line2D
    from sklearn.manifold import TSNE

    alone = len(folders) == 1
    figure, axes = grid(len(folders), *((3.4, 3.4) if alone else (2.33, 2.5)))
    handles: dict[str, object] = {}
    for ax, folder, task, name in zip(axes, folders, tasks, short_names(folders)):
        sets = (task.query(images.rare), task.support(images.rare))
        embeddings = np.concatenate(embed(folder, *sets))
        perplexity = min(30, (len(embeddings) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=0)
        places = np.split(tsne.fit_transform(embeddings), [len(sets[0])])
        looks = (
            {"s": 9, "lw": 0.25, "alpha": 0.85, "ec": "white"},
            {"s": 75, "lw": 0.7, "marker": "*", "zorder": 3, "ec": "black"},
        )
        for part, place, how in zip(sets, places, looks):
            colors = [color_of(task.classes[label], task.rare) for label in part.labels]
            ax.scatter(*place.T, c=colors, **how)
        for label in task.classes:
            how = {"color": color_of(label, task.rare), "label": words(label, 40)}
            handles[label] = Line2D([], [], linestyle="", marker="o", markersize=4, **how)
        ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        ax.set_title("" if alone else name)
        ax.set_box_aspect(1)
    star = {"marker": "*", "markersize": 8, "mfc": "white", "mec": "black", "mew": 0.7}
    legend = [*handles.values(), Line2D([], [], linestyle="", label="support image", **star)]
    below(figure, legend, columns=2 if alone else 4)
    return figure


def draw_lookalikes(result: Result, images: Collection, embed: Embed):
    """The surest mistakes (Fig. 7), a column each, over the base image and the support image of
    the class they were taken for that resemble them most."""
    mistakes, task = worst_mistakes(result.path.with_suffix(".csv"), LOOKALIKES), result.task
    base, support = images.base, task.support(images.rare)
    query = images.rare.take([row["image"] for row in mistakes])
    of_query, of_base, of_support = embed(result.checkpoint, query, base, support)
    columns = len(mistakes)
    figure, axes = pyplot().subplots(
        3, columns, figsize=(0.5 + 1.3 * columns, 4.9), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    rows = ("Query image", "Most similar\nbase image", "Most similar\nsupport image")
    for ax, text in zip(axes[:, 0], rows):
        ax.set_ylabel(text)
    for column, (row, embedding) in enumerate(zip(mistakes, of_query)):
        near, cosine = most_similar(embedding, of_base)
        taken_for = task.classes.index(row["prediction"])
        candidates = np.flatnonzero(np.array(support.labels) == taken_for)
        which, close = most_similar(embedding, of_support[candidates])
        mistake = f"{words(row['truth'], 20)}\n→ {words(row['prediction'], 20)} ({row['p']:.2f})"
        like = f"{words(base.classes[base.labels[near]], 22)}\ncosine {cosine:.2f}"
        support_like = f"{words(row['prediction'], 22)}\ncosine {close:.2f}"
        shown = [(query, column, mistake), (base, near, like)]
        shown.append((support, candidates[which], support_like))
        for ax, (part, number, text) in zip(axes[:, column], shown):
            picture = read_image(part.paths[number])
            picture.thumbnail((400, 400))
            ax.imshow(picture)
            ax.set_title(text, size=7)
    return figure
