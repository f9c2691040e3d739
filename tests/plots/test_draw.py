"""The contents of the figures: numbers, labels and colours."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from datasets import oct, open_dataset
from datasets.pseudo import PseudoLabels
from plots import draw, style
from plots.read import Result, Run, Tasks, read_result, worst_mistakes

RARE = {"dataset": "synthetic", "counts": {"x": 5, "y_z": 5}, "sha256": ""}


def task(seed: int = 0, k_shot: int = 1, classes=("x", "y_z")) -> dict:
    support = [[f"{name}{n}" for n in range(k_shot)] for name in classes]
    return {
        "classes": classes,
        "k_shot": k_shot,
        "seed": seed,
        "support_ids": support,
        "rare": RARE,
    }


def run(name: str, **lines: list[float]) -> Run:
    length = max(map(len, lines.values()))
    epochs = {n + 1: {k: v[n] for k, v in lines.items()} for n in range(length)}
    return Run(Path("runs") / name, {"stage": "moco", "task": task()}, epochs)


def labels(seed: int, k_shot: int, hard: list[int]) -> PseudoLabels:
    ids = tuple(map(str, range(len(hard))))
    about = {"task": task(seed, k_shot)}
    return PseudoLabels(ids, np.eye(2)[hard], np.zeros((len(hard), 3)), about)


def texts(figure) -> set[str]:
    import matplotlib.text

    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


@pytest.fixture(autouse=True)
def closing():
    yield
    style.pyplot().close("all")


def test_curves():
    figure = draw.draw_curves(
        [run("a", loss=[3, 2, 1]), run("b", loss=[4, 3, 2], agreement=[0.1, 0.2, 0.3])]
    )
    loss, agreement = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[3, 2, 1], [4, 3, 2]]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert loss.lines[0].get_color() != loss.lines[1].get_color()
    assert loss.lines[1].get_color() == agreement.lines[-1].get_color()
    assert list(agreement.lines[-1].get_ydata()) == pytest.approx([10, 20, 30])
    assert loss.get_ylabel() == "Loss" and "%" in agreement.get_ylabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert {line.get_marker() for line in figure.legends[0].get_lines()} == {"None"}


def test_drops_of_the_rate_are_marked_where_the_loss_may_rise():
    a = run("a", loss=[3, 2, 1, 2], acc1=[0.1] * 4, lr=[0.03, 0.03, 0.003, 0.003])
    figure = draw.draw_curves([a, run("b", loss=[3, 2, 1, 2], lr=[0.03, 0.02, 0.015, 0.0103])])
    loss, accuracy = figure.axes
    marks = [line for line in loss.lines if line.get_color() == "grey"]
    assert [list(line.get_xdata()) for line in marks] == [[2.5, 2.5]]
    (mark,) = loss.texts
    assert mark.get_text() == "rate\n÷ 10"
    figure.canvas.draw()
    assert mark.get_window_extent().y0 >= loss.bbox.y1  # above the lines, not over them
    assert not accuracy.texts and list(loss.lines[-1].get_ydata()) == [3, 2, 1, 2]


def test_axis_labels_fit():
    with style.pyplot().rc_context(style.STYLE):
        figure = draw.draw_curves([run("a", **dict.fromkeys(draw.CURVES, [1, 2]))])
        figure.canvas.draw()
        for ax in figure.axes:
            box = ax.yaxis.label.get_window_extent()
            assert box.y0 >= figure.bbox.y0 and box.y1 <= figure.bbox.y1, ax.get_ylabel()


def test_runs_in_many_curves_look_different():
    figure = draw.draw_curves([run(f"r{n}", loss=[n, n]) for n in range(20)])
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 20


def test_temperatures():
    figure = draw.draw_temperatures([run("a", temperature_x=[1, 0.9], temperature_y_z=[1, 1])])
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[1, 0.9], [1, 1]]
    assert {"x", "y z"} <= texts(figure)


def test_temperatures_of_a_single_epoch_are_visible():
    figure = draw.draw_temperatures([run("a", temperature_x=[1], temperature_y_z=[0.9])])
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "o"]


def test_pseudo_labels_by_shots_and_seeds():
    found = {
        Path("runs/c"): labels(0, 5, [1, 1, 1, 0]),
        Path("runs/a"): labels(1, 1, [0, 0, 1, 1]),
        Path("runs/b"): labels(0, 1, [0, 1, 1, 1]),
    }
    (ax,) = draw.draw_pseudo_labels(found).axes
    shares = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert shares == [[25, 50, 25], [75, 50, 75]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "0"]
    assert {"1-shot", "5-shot", "x", "y z", "75"} <= texts(ax.figure)


def test_pseudo_labels_of_different_classes():
    found = {Path("a"): labels(0, 1, [0, 1]), Path("b"): labels(1, 1, [0, 1])}
    found[Path("b")].about["task"] = task(classes=("x", "w"))
    with pytest.raises(InputError, match="different classes"):
        draw.draw_pseudo_labels(found)


def test_confusion_adds_tasks_up():
    one, two = [[3, 1], [0, 4]], [[1, 3], [2, 2]]
    group = [Result(Path("r"), {"confusion": c}) for c in (one, two)]
    (ax,) = draw.draw_confusion({(Path("a"), "direct", "1-shot", ("x", "y_z")): group}).axes
    assert ax.images[0].get_array().tolist() == [[50, 50], [25, 75]]
    assert {"50 %\n4", "25 %\n2", "75 %\n6", "y z"} <= texts(ax.figure)


@pytest.mark.parametrize("alone", [True, False])
def test_reliability_pools_the_tasks(tmp_path, alone):
    """Two tasks: at 0.9 one image of two is right, at 0.6 one of one."""
    head = "image,truth,prediction,p_x,p_y_z"
    texts_of = {"a": "a,x,x,.9,.1\nb,y_z,y_z,.4,.6", "b": "a,y_z,x,.9,.1"}
    group = []
    for name, rows in texts_of.items():
        (tmp_path / f"{name}.csv").write_text(f"{head}\n{rows}\n")
        args = {"normalize": True, "temperature": "cv"}
        group.append(Result(tmp_path / f"{name}.json", {"task": task(), "args": args}))
    results = {(Path("a"), "lr", "1-shot", ("x", "y_z")): group}
    if not alone:
        results[Path("b"), "direct", "1-shot", ("x", "y_z")] = group[:1]
    figure = draw.draw_reliability(results)
    ax = figure.axes[0]
    accuracy, gap = ax.containers
    assert [bar.get_height() for bar in accuracy] == [1, 0.5]
    assert [bar.get_x() for bar in accuracy] == pytest.approx([8 / 15, 13 / 15])
    assert [bar.get_height() for bar in gap] == pytest.approx([-0.4, 0.4])
    assert [bar.get_y() for bar in gap] == [1, 0.5]
    (shares,) = (patch for patch in ax.patches if hasattr(patch, "get_data"))
    assert shares.get_data().values[[8, 13]] == pytest.approx([1 / 3, 2 / 3])
    # (1 · 0.4 + 2 · 0.4) / 3
    title = "1-shot, LR, L2-normalised, temperature cv, 2 tasks"
    values = "ECE 40.0 % accuracy 66.7 %, confidence 80.0 %"
    expected = f"{title} {values}" if alone else f"a {title} {values}"
    assert ax.get_title().replace("\n", " ") == expected
    assert not ax.texts  # nothing stands over the bars
    figure.canvas.draw()
    for one in figure.axes:
        box = one.title.get_window_extent()
        assert box.y1 <= figure.bbox.y1 and box.x0 >= figure.bbox.x0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("alone", [True, False])
def test_long_names_have_room(alone):
    """The OCT set's: nothing in the figure is cut off, and no two labels of an axis overlap."""
    classes = tuple(oct.RARE_CLASSES)
    confusion = np.eye(5, dtype=int) * 7 + 1
    group = [Result(Path("r"), {"confusion": confusion})]
    shots = ["1-shot"] if alone else ["1-shot", "3-shot"]
    groups = {(Path("a"), "lr", k, classes): group for k in shots}
    figures = [draw.draw_confusion(groups)]
    rare = {"dataset": "oct", "counts": dict.fromkeys(classes, 9), "sha256": ""}
    lines = {f"temperature_{name}": [1, 0.9] for name in classes}
    runs = [run(f"a{n}", **lines) for n in shots]
    for one in runs:
        one.about["task"] = {**task(classes=classes), "rare": rare}
    figures.append(draw.draw_temperatures(runs))
    for figure in figures:
        figure.canvas.draw()
        whole = figure.bbox
        boxes = [b.get_window_extent() for b in [*figure.legends, *figure.axes]]
        assert all(box.width > 100 and box.height > 50 for box in boxes)
        labels = [ax.get_xticklabels() for ax in figure.axes if ax.images]
        boxes += [label.get_window_extent() for of_one in labels for label in of_one]
        for box in boxes:
            assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1, box
        for of_one in labels:
            if not of_one or of_one[0].get_rotation():
                continue  # turned ones lie side by side
            spans = sorted((b.x0, b.x1) for b in (label.get_window_extent() for label in of_one))
            assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


def test_names_that_start_with_an_underscore_are_in_legends():
    """matplotlib would leave them out."""
    figure = draw.draw_curves([run("_a", loss=[1]), run("_b", loss=[2])])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_a", "_b"]
    classes = ("_x", "a_b", "a b")
    named = labels(0, 1, [0, 1])
    rare = {"dataset": "x", "counts": dict.fromkeys(classes, 3), "sha256": ""}
    named.about["task"] = {**task(classes=classes), "rare": rare}
    (ax,) = draw.draw_pseudo_labels({Path("a"): named}).axes
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a b", "a b", "_x"]
    colours = [handle.get_facecolor() for handle in legend.legend_handles]
    assert colours == [bars[0].get_facecolor() for bars in reversed(ax.containers)]


def test_letters_of_double_width():
    assert style.letters("ab") == 2 and style.letters("病変a") == 5


def test_class_colours_do_not_depend_on_the_task():
    assert style.color_of("y_z", RARE) == style.CLASS_COLORS[1]
    assert len(set(style.CLASS_COLORS)) == 9 and len(set(style.RUN_COLORS)) == 7
    assert style.marker_of("y_z", RARE) != style.marker_of("x", RARE)
    assert len(set(style.CLASS_MARKERS)) == 9


def test_stage_a_is_in_the_panel_of_the_contrastive_loss():
    """Contrast is its whole loss."""
    a, d = run("a", loss=[3, 2]), run("d", loss=[5, 4], loss_con=[2, 1])
    d.about["stage"] = "distill"
    panels = {ax.get_ylabel(): ax for ax in draw.draw_curves([a, d]).axes}
    lines = [list(line.get_ydata()) for line in panels["Contrastive loss"].lines]
    assert lines == [[3, 2], [2, 1]]
    assert "Contrastive loss" not in {ax.get_ylabel() for ax in draw.draw_curves([a]).axes}


def test_long_titles_are_wrapped():
    name = "papsmear-conv4_released-224px-200epochs-amp"
    with style.pyplot().rc_context(style.STYLE):
        figure = draw.draw_temperatures([run(f"{n}-{name}", temperature_x=[1, 1]) for n in "ab"])
        figure.canvas.draw()
        for ax in figure.axes:
            box = ax.title.get_window_extent()
            assert ax.get_title().replace("\n", "")[2:] == name
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_file_names_stand_under_lookalikes(chain, data):
    result = read_result(chain.student / "test_direct_3way_2shot_seed0.json")
    mistakes = worst_mistakes(result, 5)

    asked = []

    def embed(_, *sets, norm_statistics):
        asked.append(norm_statistics)
        return [np.eye(len(images), 4) + 1 for images in sets]

    figure = draw.draw_lookalikes(result, open_dataset(data), embed)
    by_image = {**result.scores["args"], "norm_statistics": "image"}
    scores = {**result.scores, "args": by_image}
    draw.draw_lookalikes(replace(result, scores=scores), open_dataset(data), embed)
    assert asked == ["running", "image"]  # the encoder as it was scored
    assert {row["image"] for row in mistakes} <= {ax.get_xlabel() for ax in figure.axes}


def test_images_of_one_file_name_are_told_apart(chain, data, tmp_path):
    """By their folders; other names stay alone."""
    ids = ["top/a/1.png", "top/b/1.png", "top/b/2.png", "1.png"]
    assert [draw.caption(i, ids[:3]) for i in ids[:3]] == ["a/1.png", "b/1.png", "2.png"]
    assert [draw.caption(i, ids) for i in ids] == ["top/a/1.png", "top/b/1.png", "2.png", "1.png"]
    for end in ("json", "csv"):  # every image becomes ID/1.png
        text = (chain.student / f"test_direct_3way_2shot_seed0.{end}").read_text()
        text = re.sub(r"ISIC_\w+", r"\g<0>/1.png", text)
        (tmp_path / f"test.{end}").write_text(text)
    images = open_dataset(data)
    parts = {
        name: replace(part, ids=tuple(f"{i}/1.png" for i in part.ids))
        for name, part in (("base", images.base), ("rare", images.rare))
    }
    result = read_result(tmp_path / "test.json")
    figure = draw.draw_lookalikes(
        result,
        replace(images, **parts),
        lambda _, *x, **__: [np.eye(len(y), 4) + 1 for y in x],
    )
    shown = {ax.get_xlabel() for ax in figure.axes}
    assert {row["image"] for row in worst_mistakes(result, 5)} <= shown and "1.png" not in shown


def test_a_number_stays_with_what_it_counts():
    assert style.fitted("L2-normalised, 1 task", 16 * style.LETTER) == "L2-normalised,\n1 task"


def test_histograms_are_told_apart():
    def of(folder, count, how="", file="tasks_lr"):
        return Tasks(Path(folder) / f"{file}.json", 5, {}, [{}] * count, how)

    assert draw.task_names([of("a", 9), of("b", 9)]) == ["a", "b"]
    names = draw.task_names([of("a", 100), of("a", 30, "temperature cv")])
    assert names == ["a, 100 tasks", "a, temperature cv, 30 tasks"]
    names = draw.task_names([of("a", 9), of("a", 9, file="tasks_adapted"), of("b", 9)])
    assert names == ["a, tasks_lr", "a, tasks_adapted", "b"]


def test_equal_histograms_are_all_visible():
    """Of two methods with the same accuracies, in every task, no line hides the other's."""
    rows = [{"accuracy": 0.5}] * 3
    scores = {"accuracy": {"mean": 0.5, "ci95": 0}}
    found = [Tasks(Path(f"{n}/t.json"), 5, scores, rows) for n in "ab"]
    (ax,) = draw.draw_tasks(found).axes
    outlines = [patch for patch in ax.patches if not patch.get_fill()]
    for drawn in (outlines, ax.lines):
        assert len({one.get_linestyle() for one in drawn}) == 2 == len(drawn)
    areas = [patch.get_zorder() for patch in ax.patches if patch.get_fill()]
    assert max(areas) < min(one.get_zorder() for one in (*outlines, *ax.lines))
    assert ax.get_xlim()[1] - ax.get_xlim()[0] > 0.9  # percent, for readable ticks


@pytest.mark.parametrize("shots", [(1,), (1, 5)])
def test_long_names_fit_beside_histograms(shots):
    name = "papsmear-conv4_released-224px-200epochs-amp-encoders"
    found = [
        Tasks(Path(f"{n}-{name}/tasks.json"), k, {"accuracy": {"mean": 0.5, "ci95": 0.1}},
              [{"accuracy": 0.4}, {"accuracy": 0.6}])
        for n in "ab" for k in shots
    ]  # fmt: skip
    with style.pyplot().rc_context(style.STYLE):
        figure = draw.draw_tasks(found)
        figure.canvas.draw()
        for ax in figure.axes:
            assert ax.get_window_extent().width > 150
            box = ax.get_legend().get_window_extent()
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
