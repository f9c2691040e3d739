"""Draw publication-ready figures of training runs, pseudo labels and scores.

python -m plots RUN_DIR… --out FIGURES --data DATA
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

import baselines
from common.errors import InputError, listed
from common.failures import tracebacks_to
from common.files import atomic_write, refuse_to_overwrite
from datasets import Collection
from datasets.images import ImageSet, check_readable
from moco.checkpoint import load_checkpoint
from moco.config import Classes, Reading
from moco.evaluate import FrozenEncoder
from plots import draw, style
from plots.fonts import choose_fonts
from plots.read import Outputs, read_folders, short_names
from trainer import cli
from trainer.config import Device
from trainer.distributed import pick_device, readers
from trainer.flags import parse
from trainer.settings import resolve, setting

FIGURES = (
    "curves", "temperatures", "pseudo-labels", "confusion", "reliability", "tasks", "tsne",
    "lookalikes",
)  # fmt: skip
MAX_PANELS = 9  # also the most figures of look-alikes


@dataclass(frozen=True, kw_only=True)
class Drawing(Classes, Device, Reading):
    """plots"""

    description = "Figures of training runs, pseudo labels and scores."
    inherits = "the runs"

    folders: list[Path] = setting(
        help="output folders of the scripts, or folders that contain them", positional=True,
        metavar="RUN_DIR",
    )  # fmt: skip
    data: Path | None = setting(
        None, "data folder, for t-SNE and look-alikes", flags=("--data", "--datadir"),
        metavar="DATA",
    )  # fmt: skip
    out: Path = setting(Path("figures"), "folder for the figures", metavar="DIR")
    only: list[str] = setting(
        list(FIGURES), ", ".join(FIGURES) + " (default: all)", choices=FIGURES, metavar="NAME"
    )
    format: Literal["png", "pdf", "svg"] = setting("png", "file format")
    overwrite: bool = setting(False, "overwrite existing figures")


def main(argv: list[str] | None = None) -> None:
    baselines.register_all()
    args = resolve(Drawing, parse(Drawing, argv))
    tracebacks_to(args.out)
    outputs = read_folders(args.folders)
    pyplot = style.pyplot()
    count = 0
    missing: set[str] = set()
    with pyplot.rc_context(style.STYLE):
        for name, draw_figure in figures(args, outputs):
            file = args.out / f"{name}.{args.format}"
            refuse_to_overwrite([file], args.overwrite)
            try:
                figure = draw_figure()
            except InputError as error:
                print(f"note: no {name}: {error}")
                continue
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")  # the note says it
                missing |= choose_fonts(figure)
                with atomic_write(file) as out:
                    figure.savefig(out, format=args.format, dpi=300)
            pyplot.close(figure)
            print(f"written: {file}")
            count += 1
    if missing:
        print(
            f"note: no installed font has {listed(sorted(missing))}; install one, such as Noto "
            "Sans CJK, and draw these figures again"
        )
    if not count:
        raise InputError(f"nothing to draw for {', '.join(args.only)} in these folders")


def figures(args: Drawing, outputs: Outputs) -> Iterator[tuple[str, Callable]]:
    """Yield the name and the drawing function of each requested figure for which there is data."""
    encoding = {"tsne", "lookalikes"} & set(args.only)
    if encoding and args.data:
        images, embed = open_images(args, outputs)
    logged = [run for run in outputs.runs if any(map(run.line, draw.CURVES))]
    corrected = [run for run in outputs.runs if run.temperatures()]
    drawings: dict[str, tuple[Callable, Sequence | dict]] = {
        "curves": (draw.draw_curves, logged),
        "temperatures": (
            lambda runs: draw.draw_temperatures(first(runs, "corrected runs")),
            corrected,
        ),
        "pseudo-labels": (draw.draw_pseudo_labels, outputs.labels),
        "confusion": (draw.draw_confusion, outputs.results),
        "reliability": (draw.draw_reliability, outputs.results),
        "tasks": (draw.draw_tasks, outputs.tasks),
    }
    for name, (draw_figure, drawn) in drawings.items():
        if name in args.only and drawn:
            yield name, partial(draw_figure, drawn)
    if encoding and args.data is None:
        print("note: tsne and lookalikes need --data DATA")
        return
    results = outputs.every_result()
    # A student's task; for an encoder, the task of its first score.
    task_of = {result.checkpoint.resolve(): result.task for result in reversed(results)}
    task_of |= {run.folder.resolve(): run.task for run in outputs.runs if run.task}
    runs = [run.folder for run in outputs.runs if run.folder.resolve() in task_of]
    if "tsne" in args.only and runs:
        runs = first(runs, "runs")
        tasks = [task_of[run.resolve()] for run in runs]
        yield "tsne", partial(draw.draw_tsne, runs, tasks, images, embed)
    wrong = [result for result in results if result.mistakes]
    if "lookalikes" in args.only and wrong:
        names = short_names([result.path.with_suffix("") for result in wrong])
        for result, name in zip(first(wrong, "scores with mistakes"), names):
            name = f"lookalikes-{name.replace('/', '-')}"
            yield name, partial(draw.draw_lookalikes, result, images, embed)


def first(items: Sequence, what: str) -> Sequence:
    """Return the first MAX_PANELS items, with a note if there are more."""
    if len(items) > MAX_PANELS:
        print(f"note: {len(items)} {what}; drawing the first {MAX_PANELS}; name fewer folders")
    return items[:MAX_PANELS]


def open_images(args: Drawing, outputs: Outputs) -> tuple[Collection, Callable]:
    """Return the images, with the runs' base and rare classes, and `embed(checkpoint, *sets)`.

    `embed` returns the embeddings of each set by the query encoder of `checkpoint`, with the
    `norm_statistics` of test.py.
    """
    recorded = [(run.about.get("args"), run.folder) for run in outputs.runs]
    recorded += [(result.scores["args"], result.path) for result in outputs.every_result()]
    names = ("base_classes", "allow_duplicates")
    found = [entry for entry in recorded if any((entry[0] or {}).get(name) for name in names)]
    inherited, where = found[0] if found else ({}, "")
    flags = {name: value for name, value in vars(args).items() if value is not None}
    args = resolve(Drawing, flags, inherited=inherited, where=where)
    data = args.open_data()
    device, workers = pick_device(args.device, args.gpu), readers(args.workers)

    def embed(
        checkpoint: Path, *sets: ImageSet, norm_statistics: str = "running"
    ) -> list[np.ndarray]:
        encoder = FrozenEncoder(
            load_checkpoint(checkpoint), device, workers=workers, norm_statistics=norm_statistics
        )
        try:
            return [encoder.embed(images) for images in sets]
        except InputError:
            check_readable(*sets)  # lists all, and how to leave them out
            raise

    return data, embed


if __name__ == "__main__":
    cli.run(main)
