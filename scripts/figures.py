"""Figures of what the scripts left behind, as one would put them in a paper.

python scripts/figures.py RUN_DIR… --out FIGURES --data DATA
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the packages are

from common.errors import InputError  # noqa: E402
from common.files import atomic_write, refuse_to_overwrite  # noqa: E402
from datasets import Collection  # noqa: E402
from datasets.images import ImageSet  # noqa: E402
from datasets.open import open_data  # noqa: E402
from moco import config  # noqa: E402
from moco.checkpoint import load_checkpoint, query_encoder  # noqa: E402
from moco.evaluate import encode  # noqa: E402
from plots import draw  # noqa: E402
from plots.read import Found, find, short_names  # noqa: E402
from trainer import cli  # noqa: E402
from trainer.distributed import pick_device, readers  # noqa: E402

FIGURES = ("curves", "temperatures", "pseudo-labels", "confusion", "tsne", "lookalikes")
MOST = 9  # panels in a figure of runs, and figures of look-alikes


def make_parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser("Figures of training runs, pseudo labels and scores.")
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="RUN_DIR",
        help="folders that the scripts wrote, or that hold such folders")  # fmt: skip
    add("--data", type=Path, metavar="DATA",
        help="data folder, for the figures that show images or encode them")  # fmt: skip
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="folder for the figures")
    add("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="NAME",
        help=", ".join(FIGURES) + " (default: all)")  # fmt: skip
    add("--format", choices=["png", "pdf", "svg"], default="png", help="of the files")
    add("--overwrite", action="store_true", help="write over what is there")
    config.add_classes(parser)
    config.add_device(parser)
    config.add_skip_unreadable(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
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


def figures(args: argparse.Namespace, found: Found) -> Iterator[tuple[str, Callable]]:
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


def open_images(args: argparse.Namespace, found: Found) -> tuple[Collection, Callable]:
    """The images, of the classes that the runs know, and what encodes them: `embed(checkpoint,
    *sets)` gives the embeddings of each of `sets` by a checkpoint's query encoder."""
    made = [(run.about.get("args"), run.folder) for run in found.runs]
    made += [(result.scores["args"], result.path) for result in found.every_result()]
    known = next((m for m in made if m[0] and m[0].get("base_classes")), (None, None))
    data = open_data(args.data, args, *known)
    device, workers = pick_device(args.device, args.gpu), readers(args.workers)

    def embed(checkpoint_at: Path, *sets: ImageSet) -> list[np.ndarray]:
        checkpoint = load_checkpoint(checkpoint_at)
        encoder, size = query_encoder(checkpoint).to(device), checkpoint["args"]["image_size"]
        return [encode(encoder, images, size, workers=workers, device=device) for images in sets]

    return data, embed


if __name__ == "__main__":
    cli.run(main)
