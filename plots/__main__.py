"""Figures of what the scripts left behind, as one would put them in a paper.

python -m plots RUN_DIR… --out FIGURES --data DATA
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

import baselines
from common.errors import InputError
from common.files import atomic_write, refuse_to_overwrite
from datasets import Collection
from datasets.images import ImageSet
from datasets.open import open_data
from moco.checkpoint import load_checkpoint
from moco.config import Classes, SkipUnreadable
from moco.evaluate import FrozenEncoder
from plots import draw
from plots.read import Found, find, short_names
from trainer import cli
from trainer.config import Device
from trainer.distributed import pick_device, readers
from trainer.settings import parse, resolve, setting

FIGURES = ("curves", "temperatures", "pseudo-labels", "confusion", "tsne", "lookalikes")
MOST = 9  # panels in a figure of runs, and figures of look-alikes


@dataclass(frozen=True, kw_only=True)
class Drawing(Classes, Device, SkipUnreadable):
    """plots"""

    description = "Figures of training runs, pseudo labels and scores."
    inherits = "the runs"

    folders: list[Path] = setting(
        help="folders that the scripts wrote, or that hold such folders", positional=True,
        metavar="RUN_DIR",
    )  # fmt: skip
    data: Path | None = setting(
        None, "data folder, for the figures that show images or encode them", metavar="DATA"
    )
    out: Path = setting(Path("figures"), "folder for the figures", metavar="DIR")
    only: list[str] = setting(
        list(FIGURES), ", ".join(FIGURES) + " (default: all)", choices=FIGURES, metavar="NAME"
    )
    format: Literal["png", "pdf", "svg"] = setting("png", "of the files")
    overwrite: bool = setting(False, "write over what is there")


def main(argv: list[str] | None = None) -> None:
    baselines.register_all()
    args = resolve(Drawing, parse(Drawing, argv))
    found = find(args.folders)
    pyplot = draw.pyplot()
    drawn = 0
    with pyplot.rc_context(draw.STYLE):
        for name, drawing in figures(args, found):
            file = args.out / f"{name}.{args.format}"
            refuse_to_overwrite([file], args.overwrite)
            try:
                figure = drawing()
            except InputError as error:
                print(f"note: no {name}: {error}")
                continue
            with atomic_write(file) as out:
                figure.savefig(out, format=args.format, dpi=300)
            pyplot.close(figure)
            print(f"written: {file}")
            drawn += 1
    if not drawn:
        raise InputError(f"there is nothing for {', '.join(args.only)} in these folders")


def figures(args: Drawing, found: Found) -> Iterator[tuple[str, Callable]]:
    """Each figure that was asked for and that there is something for: its name, and what draws
    it."""
    encoding = {"tsne", "lookalikes"} & set(args.only)
    if encoding and args.data:
        images, embed = open_images(args, found)
    if "curves" in args.only and (runs := [run for run in found.runs if draw.has_curves(run)]):
        yield "curves", partial(draw.draw_curves, runs)
    corrected = [run for run in found.runs if run.temperatures()]
    if "temperatures" in args.only and corrected:
        yield "temperatures", partial(draw.draw_temperatures, first(corrected, "corrected runs"))
    if "pseudo-labels" in args.only and found.labels:
        yield "pseudo-labels", partial(draw.draw_pseudo_labels, found.labels)
    if "confusion" in args.only and found.results:
        yield "confusion", partial(draw.draw_confusion, found.results)
    if encoding and args.data is None:
        print("note: t-SNE and look-alikes need --data DATA")
        return
    results = found.every_result()
    # A student's own task; for an encoder that of the first score of it.
    task_of = {result.checkpoint.resolve(): result.task for result in reversed(results)}
    task_of |= {run.folder.resolve(): run.task for run in found.runs if run.task}
    runs = [run.folder for run in found.runs if run.folder.resolve() in task_of]
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


def first(things: Sequence, what: str) -> Sequence:
    """As many as can be drawn, and a note if these are not all."""
    if len(things) > MOST:
        print(f"note: {len(things)} {what}; drawn are the first {MOST}; name fewer folders")
    return things[:MOST]


def open_images(args: Drawing, found: Found) -> tuple[Collection, Callable]:
    """The images, of the classes that the runs know, and what encodes them: `embed(checkpoint,
    *sets)` gives the embeddings of each of `sets` by a checkpoint's query encoder."""
    made = [(run.about.get("args"), run.folder) for run in found.runs]
    made += [(result.scores["args"], result.path) for result in found.every_result()]
    theirs, where = next((m for m in made if m[0] and m[0].get("base_classes")), ({}, ""))
    given = {name: value for name, value in vars(args).items() if value is not None}
    args = resolve(Drawing, given, inherited=theirs, where=where)
    data = open_data(args.data, args.base_classes, args.rare_classes, args.skip_unreadable)
    device, workers = pick_device(args.device, args.gpu), readers(args.workers)

    def embed(checkpoint_at: Path, *sets: ImageSet) -> list[np.ndarray]:
        encoder = FrozenEncoder(load_checkpoint(checkpoint_at), device, workers=workers)
        return [encoder.embed(images) for images in sets]

    return data, embed


if __name__ == "__main__":
    cli.run(main)
