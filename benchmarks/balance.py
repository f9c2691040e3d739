"""What balancing the pseudo labels does to a student's classifier, on frozen features, in minutes.

python -m benchmarks.balance DATA --resume runs/frozen --k-shot 5 --tasks 20

The student is f_c′ alone, on the features of the teacher, trained as in stage (d) on random views
of the base images. Each way of balancing is tried with a classifier that starts anew, as in the
papers, and with one that starts as the teacher's f_c (--student-classifier teacher). What may
decide between them are the support images, which the student is not trained on, and how many base
images it calls one class; the accuracy on query images is for the reader.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import common.startup  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import baselines
from datasets.episode import draw_task
from datasets.images import ImageSet
from datasets.open import open_data
from moco import losses
from moco.checkpoint import load_checkpoint
from moco.distill import align
from moco.evaluate import FrozenEncoder, by_id, fit_classifier, linear_map
from moco.loader import EpochBatches
from moco.scores import mean_interval
from models import LinearClassifier
from trainer import cli
from trainer.distributed import pick_device
from trainer.optimizer import sgd

from . import add_classes, classes_of

TEACHER = "teacher"


def sinkhorn(p: Tensor, iterations: int = 200) -> Tensor:
    """The assignment nearest to p that gives all classes as many images: Sinkhorn–Knopp (SwAV,
    Caron et al. 2020, arXiv 2006.09882, with scores log p and ε = 1, to the end instead of three
    iterations). Each iteration is `align`. p and what it returns: M×N probabilities."""
    for _ in range(iterations):
        p = align(p)
    return p


def log_prior(p: Tensor) -> Tensor:
    """log π_n, added to the student's logits in training: logit adjustment (Menon et al. 2021,
    arXiv 2007.07314, τ = 1), π the mean of p over the images. Returns N values."""
    return p.mean(dim=0).clamp(min=torch.finfo(p.dtype).tiny).log()


def select(p: Tensor) -> Tensor:
    """Weights that keep of each predicted class the most confident images, as many as the rarest
    has. CReST (Wei et al. 2021, arXiv 2102.09559) rebalances so, but draws them at random. Returns
    M weights with mean 1."""
    confidence, labels = p.max(dim=1)
    kept = min(int((labels == n).sum()) for n in labels.unique())
    weights = torch.zeros_like(confidence)
    for n in labels.unique():
        rows = (labels == n).nonzero().flatten()
        weights[rows[confidence[rows].argsort(descending=True, stable=True)[:kept]]] = 1
    return weights / weights.mean()


def reweight(p: Tensor) -> Tensor:
    """Weights w ∝ 1/M_n of an image that is called class n, as M_n are: in expectation, sampling of
    all classes alike. Returns M weights with mean 1."""
    labels = p.argmax(dim=1)
    weights = 1 / labels.bincount(minlength=p.shape[1]).to(p)[labels]
    return weights / weights.mean()


def confidence(p: Tensor) -> Tensor:
    """Weights w ∝ 1 − H(p)/log N. Returns M weights with mean 1."""
    weights = 1 - torch.special.entr(p).sum(dim=1) / math.log(p.shape[1])
    return weights / weights.mean()


@dataclass(frozen=True)
class Labels:
    """What L_cls is computed with: labels y, M×N; weights of the images, M; a bias of the logits
    and class temperatures, N."""

    y: Tensor
    weights: Tensor
    bias: Tensor
    temperatures: Tensor
    adaptive: bool


def ways(p: Tensor, features: Tensor) -> dict[str, Labels]:
    """Return the labels by name of each way to balance p, M×N; features: M×D."""
    one, zero, images = p.new_ones(p.shape[1]), p.new_zeros(p.shape[1]), p.new_ones(len(p))

    def hard(p: Tensor) -> Tensor:
        return F.one_hot(p.argmax(dim=1), p.shape[1]).to(p)

    def labels(y, weights=images, bias=zero, temperatures=one, adaptive=True):
        return Labels(y, weights, bias, temperatures, adaptive)

    counts = hard(p).sum(dim=0)
    v = losses.dispersions(features, p.argmax(dim=1), p.shape[1], "normalized")
    return {
        "none (papers)": labels(hard(p)),
        "hard labels": labels(hard(p), adaptive=False),
        "soft labels": labels(p, adaptive=False),
        "DIC, γ 0.1": labels(hard(p), temperatures=losses.class_temperatures(v, 0.1)),
        "DIC, γ 0.9": labels(hard(p), temperatures=losses.class_temperatures(v, 0.9)),
        "DDL, γ 0.1": labels(hard(p), temperatures=losses.class_temperatures(counts, 0.1)),
        "DDL, γ 0.9": labels(hard(p), temperatures=losses.class_temperatures(counts, 0.9)),
        "alignment": labels(hard(align(p))),
        "alignment, soft": labels(align(p), adaptive=False),
        "Sinkhorn": labels(hard(sinkhorn(p))),
        "logit adjustment": labels(hard(p), bias=log_prior(p)),
        "selection": labels(hard(p), weights=select(p)),
        "class weights": labels(hard(p), weights=reweight(p)),
        "confidence": labels(hard(p), weights=confidence(p)),
    }


def train(
    labels: Labels, views: Tensor, start: Tensor | None, epochs: int, lr: float, seed: int
) -> nn.Module:
    """Return f_c′ after `epochs` of stage (d)'s L_cls on views, M×V×D, in batches of 16.

    start: N×(D+1) weights and biases, or None for random ones.
    """
    torch.manual_seed(seed)
    f_c = LinearClassifier(views.shape[2], labels.y.shape[1])
    if start is not None:
        f_c.load(start)
    optimizer = sgd(f_c, lr, 0.9, 1e-4)
    batches = EpochBatches(len(views), 16, seed)
    for epoch in range(epochs):
        batches.epoch = epoch
        for batch in batches:
            rows = torch.tensor([row for _, row in batch])
            logits = f_c(views[rows, epoch % views.shape[1]]) + labels.bias
            y = labels.y[rows]
            if labels.adaptive:
                p = logits.softmax(dim=1).detach()
                y = losses.adaptive_labels(y, p, epoch, epochs, 0.7)
            y = labels.weights[rows, None] * y  # eq. (3) is linear in the labels
            loss = losses.cross_entropy(y, losses.corrected_logits(logits, labels.temperatures))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return f_c.eval()


def measure(
    rare: ImageSet, features: Tensor, base: Tensor, views: Tensor, k_shot: int, tasks: int,
    epochs: int, lr: float,
) -> dict[str, list[list[float]]]:  # fmt: skip
    """Return by way and task, in percent: accuracy on the support set, largest share of the base
    images that are called one class, and accuracy on the query set, of a classifier that starts
    anew, then of one that starts as the teacher's; under TEACHER its own.

    features: of the images of `rare`, K×D; base: M×D; views: M×V×D.
    """
    embedded = by_id(rare, features)
    found: dict[str, list[list[float]]] = {}
    for seed in range(tasks):
        task = draw_task(rare, None, k_shot, seed)
        support, query = (
            (embedded(part), torch.tensor(part.labels))
            for part in (task.support(rare), task.query(rare))
        )
        teacher = fit_classifier(support[0].numpy(), support[1].numpy())
        p = torch.from_numpy(teacher.predict_proba(base.numpy())).float()
        start = torch.from_numpy(linear_map(teacher)).float()
        f_c = LinearClassifier(base.shape[1], p.shape[1])
        f_c.load(start)
        found.setdefault(TEACHER, []).append(scores(f_c, support, query, base))
        for name, labels in ways(p, base).items():
            students = [train(labels, views, f_c, epochs, lr, seed) for f_c in (None, start)]
            row = sum((scores(f_c, support, query, base) for f_c in students), [])
            found.setdefault(name, []).append(row)
    return found


@torch.no_grad()
def scores(
    f_c: nn.Module, support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor], base: Tensor
) -> list[float]:
    """Return accuracy on the support set, largest share of `base` called one class, and accuracy on
    the query set, in percent. Sets: features and labels."""
    on_support, on_query = (
        (f_c(x).argmax(dim=1) == y).float().mean().item() for x, y in (support, query)
    )
    share = f_c(base).argmax(dim=1).bincount().max().item() / len(base)
    return [100 * on_support, 100 * share, 100 * on_query]


def report(found: dict[str, list[list[float]]]) -> None:
    """Print means over the tasks, and the paired difference from the teacher on the query sets with
    its 95 % interval."""
    width = max(map(len, found))
    columns = " support  share  query  minus teacher"
    print(f"{'':{width}}{'a classifier that starts anew':>40}{'as its teacher':>40}")
    print(f"{'':{width}}{columns:>40}{columns:>40}")
    before = np.array(found[TEACHER])[:, 2]
    for name, rows in found.items():
        line = f"{name:{width}}"
        for part in np.split(np.array(rows), len(rows[0]) // 3, axis=1):
            support, share, query = part.mean(axis=0)
            difference = mean_interval(part[:, 2] - before)
            apart = f"{difference['mean']:+.1f} ± {difference['ci95']:.1f}"
            line += f"{support:11.1f}{share:7.1f}{query:7.1f}{apart:>15}"
        print(line)


def main(argv: list[str] | None = None) -> None:
    parser = cli.ArgumentParser("Compare ways to balance pseudo labels, on frozen features.")
    add = parser.add_argument
    add("data", type=Path, help="data folder")
    add("--resume", type=Path, required=True, help="run of baselines.pretrained")
    add("--k-shot", type=int, default=5, help="support images per class")
    add("--tasks", type=int, default=20, help="number of tasks, seeds from 0")
    add("--epochs", type=int, default=6, help="epochs of the student")
    add("--lr", type=float, default=1e-4, help="its learning rate")
    add("--views", type=int, default=2, help="random views of a base image, used in turn")
    add("--images", type=int, help="base images, drawn at random (default: all)")
    add_classes(parser)
    args = parser.parse_args(argv)
    baselines.register_all()
    checkpoint = load_checkpoint(args.resume, ("pretrained",))
    data = open_data(args.data, *classes_of(args, checkpoint))
    encoder = FrozenEncoder(checkpoint, pick_device("auto", None))
    chosen = np.random.default_rng(0).permutation(data.base.ids)[: args.images]
    base = data.base.take(sorted(chosen.tolist()))
    features, z_base, views = map(torch.from_numpy, (
        encoder.embed(data.rare, "rare images"), encoder.embed(base, "base images"),
        encoder.copies(base, args.views, "random views"),
    ))  # fmt: skip
    numbers = args.k_shot, args.tasks, args.epochs, args.lr
    print(f"{args.k_shot} shots, {args.tasks} tasks, {args.epochs} epochs, rate {args.lr}; "
          f"{len(base)} base images")  # fmt: skip
    report(measure(data.rare, features, z_base, views, *numbers))


if __name__ == "__main__":
    cli.run(main)
