"""What all figures share: sizes, colours, labels and legends.

Figures have their size in print, with 8-point text: one column (3.4 inches) wide, or two (7).
"""

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence

from common.packages import required

# Colour-blind safe (Okabe and Ito); runs and classes start at different colours.
RUN_COLORS = ["#0072B2", "#D55E00", "#009E73", "#000000", "#E69F00", "#56B4E9", "#CC79A7"]
CLASS_COLORS = [
    "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#0072B2", "#999999", "#F0E442",
    "#000000",
]  # fmt: skip
CLASS_MARKERS = "os^DvPXph"
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "lines.linewidth": 1, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.handlelength": 1.6,
    "text.parse_math": False, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figures",
}  # fmt: skip
LETTER = 0.065  # width of a letter of 8 points, in inches
LINE = 0.17  # height of a line, in inches


def pyplot():
    """Return pyplot without a display. Raises InputError if matplotlib is missing or broken."""
    required("matplotlib", "matplotlib", "figures need").use("Agg")
    return required("matplotlib.pyplot", "matplotlib", "figures need")


def grid(count: int, width: float, height: float, across: int = 3, **options):
    """Create a figure with `count` axes, `width`×`height` inches each, up to `across` per row."""
    columns = 2 if (count, across) == (4, 3) else min(count, across)
    rows = math.ceil(count / columns)
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
        **options,
    )
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def class_label(name: str, width: int = 13) -> str:
    """Return a class name with spaces, wrapped at about `width` letters."""
    start = name[: len(name) - len(name.lstrip("_"))]  # drawn as it stands
    text = start + name[len(start) :].replace("_", " ")
    return textwrap.fill(text, width, break_long_words=False)


def color_of(name: str, rare: dict) -> str:
    """Return a class's colour, the same in all figures. `rare`: fingerprint of the rare set."""
    return CLASS_COLORS[list(rare["counts"]).index(name) % len(CLASS_COLORS)]


def marker_of(name: str, rare: dict) -> str:
    """Return a class's marker, the same in all figures, for those who cannot see the colours."""
    return CLASS_MARKERS[list(rare["counts"]).index(name) % len(CLASS_MARKERS)]


def fitted(name: str, width: float) -> str:
    """Return a title wrapped to `width` inches, not between a number and what it counts."""
    joined = re.sub(r"(?<=\d) ", "\xa0", name)
    return textwrap.fill(joined, max(8, int(width / LETTER))).replace("\xa0", " ")


def add_legend(owner, entries: Sequence[tuple[str, object]], **options) -> None:
    """Add a legend of `entries`, (label, handle), to a figure or axes."""
    legend = owner.legend([handle for _, handle in entries], ["-"] * len(entries), **options)
    # Set afterwards: matplotlib leaves out labels that start with an underscore.
    texts = reversed(legend.get_texts()) if options.get("reverse") else legend.get_texts()
    for text, (label, _) in zip(texts, entries):
        text.set_text(label)


def legend_below(figure, entries: Sequence[tuple[str, object]], columns: int = 4) -> None:
    """Add a legend of `entries`, (label, handle), below the figure, in up to `columns` columns as
    fit; the figure grows by it."""
    longest = max(letters(label) for label, _ in entries)
    room = int(figure.get_figwidth() / (0.45 + LETTER * longest))
    columns = max(1, min(columns, room, len(entries)))
    rows = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + LINE * (rows - 1))
    add_legend(figure, entries, loc="outside lower center", ncols=columns)


def letters(text: str) -> int:
    """Return the width of a text in letters, of which a Chinese or Japanese one takes two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)
