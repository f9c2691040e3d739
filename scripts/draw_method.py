"""Draw the picture of the method that the README shows.

python scripts/draw_method.py [OUT]        (OUT: docs/method.png)
"""

import sys

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

WIDTH, HEIGHT = 11.2, 4.65  # inches, which are also the units of every coordinate below
TOP, LABELS, IMAGES, VIEWS, ENCODERS, MIDDLE, LOSSES, NOTES, BOTTOM, FILES = (
    4.57, 3.88, 3.63, 3.08, 2.5, 1.9, 1.28, 0.96, 0.8, 0.35,
)  # heights of the rows, the same in all four panels  # fmt: skip
GREYS = ["#8c8c8c", "#c4c4c4", "#a6a6a6", "#d6d6d6", "#999999", "#b8b8b8"]  # images without labels
CLASSES = ["#E69F00", "#56B4E9", "#CC79A7"]  # rare classes; these and the next: Okabe and Ito
QUERY, KEY, CLASSIFIER, LOSS = "#0072B2", "#009E73", "#F0E442", "#D55E00"
LINE = "#333333"
BASE = r"base images $D_\mathrm{base}$"


def write(x, y, text, size=9, **style):
    plt.text(x, y, text, **{"size": size, "ha": "center", "va": "center", **style})


def box(x, y, width, text, color, height=0.34, alpha=0.25, **style):
    corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.06"
    look = {"facecolor": (color, alpha), "edgecolor": LINE, "linewidth": 0.9}
    plt.gca().add_patch(FancyBboxPatch(corner, width, height, shape, **look))
    write(x, y, text, **style)


def arrow(*points, dashed=False):
    """From the first point through the others to the last, beneath boxes."""
    look = {"color": LINE, "linewidth": 1.1, "linestyle": (0, (3, 2)) if dashed else "-"}
    plt.plot(*zip(*points[:-1]), zorder=0.9, **look)
    look |= {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    plt.annotate("", points[-1], points[-2], arrowprops=look, zorder=0.9)


def down(x, start, end, leave=0.18, reach=0.18):
    """An arrow between what stands in two rows; leave, reach: their half heights."""
    arrow((x, start - leave), (x, end + reach))


def squares(x, y, colors, size=0.19, gap=0.05):
    """A row of little images around x."""
    left = x - (len(colors) * (size + gap) - gap) / 2
    for i, color in enumerate(colors):
        corner = (left + i * (size + gap), y - size / 2)
        plt.gca().add_patch(Rectangle(corner, size, size, fc=color, ec=LINE, lw=0.6))


def bars(x, y, values):
    """Class probabilities around (x, y)."""
    for i, (value, color) in enumerate(zip(values, CLASSES)):
        corner = (x - 0.215 + i * 0.15, y - 0.15)
        plt.gca().add_patch(Rectangle(corner, 0.13, value * 0.32, fc=color, ec=LINE, lw=0.6))
    plt.plot([x - 0.27, x + 0.27], [y - 0.15] * 2, color=LINE, lw=0.9)


def panel(left, right, name, script):
    look = {"facecolor": "#fafafa", "edgecolor": "#999999", "linewidth": 1, "zorder": 0}
    plt.gca().add_patch(Rectangle((left, BOTTOM), right - left, TOP - BOTTOM, **look))
    write((left + right) / 2, TOP - 0.17, name, 10.5, weight="bold")
    write((left + right) / 2, TOP - 0.38, script, family="monospace")


def contrast(x_q, x_k, x_queue, prime=""):
    """Two views, two encoders, the queue and eq. (1): what stages (a) and (d) share."""
    middle = (x_q + x_k) / 2
    squares(middle, IMAGES, GREYS)
    for x, name, color in [(x_q, "q", QUERY), (x_k, "k", KEY)]:
        fork = (IMAGES + VIEWS) / 2 + 0.03
        arrow((middle, IMAGES - 0.12), (middle, fork), (x, fork), (x, VIEWS + 0.11))
        squares(x, VIEWS, GREYS[:1])
        write(x + 0.23, VIEWS, f"$x_{name}$")
        down(x, VIEWS, ENCODERS, leave=0.11)
        box(x, ENCODERS, 0.48, f"$f_{name}{prime}$", color, size=11)
        down(x, ENCODERS, LOSSES)
        write(x - 0.09, LOSSES + 0.29, f"${name}$")
    write(x_queue, VIEWS, "two\nrandom\nviews", 8.5)
    arrow((x_q + 0.25, ENCODERS), (x_k - 0.25, ENCODERS), dashed=True)
    write(middle, ENCODERS - 0.33, "momentum\nupdate", 8.5)
    arrow((x_k + 0.25, ENCODERS), (x_queue, ENCODERS), (x_queue, MIDDLE + 0.29))
    down(x_queue, MIDDLE, LOSSES, leave=0.24)
    box(x_queue, MIDDLE + 0.02, 0.72, "", KEY, 0.52, alpha=0.1)
    squares(x_queue, MIDDLE + 0.17, [(KEY, 0.3)] * 5, 0.1, 0.02)
    write(x_queue, MIDDLE - 0.08, "queue of\n$L$ keys", 8.5, linespacing=1.05)
    left, right = x_q - 0.25, x_queue + 0.36
    text = r"contrastive loss $\mathcal{L}_\mathrm{con}$  (eq. 1)"
    box((left + right) / 2, LOSSES, right - left, text, LOSS)


def url():
    panel(0.1, 2.7, "(a) URL", "main_moco.py")
    write(1.4, LABELS, "unlabelled " + BASE)
    contrast(0.48, 1.41, 2.21)
    write(1.4, NOTES, r"$\theta_k \leftarrow m\,\theta_k + (1-m)\,\theta_q$")


def teacher(x=3.725):
    panel(2.9, 4.55, "(b) Teacher", "generate_pseudo.py")
    write(x, LABELS, "rare support set $S$")
    for i, color in enumerate(CLASSES):
        squares(x, IMAGES - 0.23 * i, [color] * 3, gap=0.04)
    write(x - 0.57, IMAGES - 0.23, "$N$-way", 8.5)
    write(x + 0.57, IMAGES - 0.23, "$K$-shot", 8.5)
    down(x, IMAGES, ENCODERS, leave=0.58)
    box(x, ENCODERS, 1.0, "$f_q$  frozen", QUERY)
    down(x, ENCODERS, MIDDLE)
    box(x, MIDDLE, 1.5, "logistic regression $f_c$", CLASSIFIER)
    down(x, MIDDLE, LOSSES)
    box(x, LOSSES, 1.1, "$F = f_c(f_q)$", CLASSIFIER)
    arrow((x + 0.56, LOSSES), (4.65, LOSSES), (4.65, ENCODERS), (5.22, ENCODERS))  # to (c)


def pseudo_labels(x=5.525):
    panel(4.75, 6.3, "(c) Pseudo labels", "generate_pseudo.py")
    write(x, LABELS, BASE)
    squares(x, IMAGES, GREYS)
    down(x, IMAGES, ENCODERS, leave=0.12)
    box(x, ENCODERS, 0.6, "$F$", CLASSIFIER, size=11)
    for start, row, name, values in [
        (ENCODERS, MIDDLE, "$p$", [0.25, 0.9, 0.4]),
        (MIDDLE, LOSSES, "$y$", [0, 1, 0]),
    ]:
        down(x, start, row, reach=0.2)
        bars(x, row, values)
        write(x - 0.42, row, name)
    write(x + 0.52, MIDDLE, "proba-\nbility", 8.5)
    write(x + 0.52, LOSSES, "hard\nlabel", 8.5)
    write(x, NOTES, r"$y$ = one-hot argmax $p$")


def distillation(x=8.18, x_y=7.16):
    panel(6.5, 11.1, "(d) Hybrid self-distillation", "main_distill.py")
    write(9.4, LABELS, BASE)
    contrast(8.95, 9.85, 10.62, prime="'")
    write(x_y, LABELS, "pseudo labels $y$")
    bars(x_y, IMAGES - 0.03, [0, 1, 0])
    down(x_y, IMAGES, MIDDLE, reach=0.24)
    write(x, VIEWS, "fresh student\n$F' = f_c'(f_q')$", 8.5)
    arrow((8.7, ENCODERS), (x + 0.25, ENCODERS))
    box(x, ENCODERS, 0.48, "$f_c'$", CLASSIFIER, size=11)
    down(x, ENCODERS, MIDDLE, reach=0.2)
    bars(x, MIDDLE, [0.3, 0.8, 0.2])
    write(x + 0.39, MIDDLE, "$p'$")
    arrow((x - 0.28, MIDDLE), (x_y + 0.56, MIDDLE))
    adaptive = r"$y_\mathrm{adpt}$ (eq. 5) =" + "\n" + r"$(1-\alpha_t)\,y + \alpha_t\,p'$"
    box(x_y, MIDDLE, 1.1, adaptive, "white", 0.46, alpha=1, size=8.5)
    down(x_y, MIDDLE, LOSSES, leave=0.24)
    down(x, MIDDLE, LOSSES)
    box(7.55, LOSSES, 1.88, r"cross-entropy $\mathcal{L}_\mathrm{cls}$  (eq. 3)", LOSS)
    write(8.595, LOSSES, "+", 11)
    total = r"$\mathcal{L}_\mathrm{dis} = \mathcal{L}_\mathrm{con} + \mathcal{L}_\mathrm{cls}$"
    write(8.8, NOTES, total + r"  (eq. 2);  $\alpha_t$ grows with the epoch $t$")


def files():
    """What passes between the panels, along their lower edge."""
    for x, name, (start, *way) in [
        (2.56, "checkpoint.pth.tar", (1.4, (3.725, FILES), (3.725, BOTTOM))),
        (6.34, "task.json +\npseudo_labels.npz", (5.525, (7.16, FILES), (7.16, BOTTOM))),
        (8.7, "checkpoint.pth.tar", (7.78, (9.64, FILES))),
    ]:
        arrow((start, BOTTOM), (start, FILES), *way)
        box(x, FILES, 1.46, name, "white", 0.42, alpha=1, size=8.5, family="monospace")
    box(10.37, FILES, 1.46, "", "#999999", 0.42, alpha=0.15)
    write(10.37, FILES + 0.09, "test.py", family="monospace")
    write(10.37, FILES - 0.09, "scores on query set $Q$", 8.5)


def main(out="docs/method.png"):
    figure = plt.figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    for draw in (url, teacher, pseudo_labels, distillation, files):
        draw()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
