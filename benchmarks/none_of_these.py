"""How well common images are told from rare ones: "none of these" of test.py --predict.

python -m benchmarks.none_of_these DATA --resume ENCODER --k-shot 5 --seeds 10

For each seed: the statistics come from one half of the base images, drawn at random, and a task's
support set; the AUC is that of the other half against the task's query set. The method of
test.py, and others for comparison, on the same images.
"""

import argparse
from pathlib import Path

import common.startup  # noqa: F401

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

import baselines
from datasets.cache import DEFAULT as CACHE
from datasets.episode import draw_task
from datasets.images import ImageSet
from datasets.open import decoded, open_data
from moco.checkpoint import load_checkpoint
from moco.config import STAGES, Testing
from moco.evaluate import FrozenEncoder, by_id, fit_classifier
from moco.outliers import fit_reference
from trainer import cli
from trainer.distributed import pick_device

from . import add_classes, classes_of

METHOD = "relative Mahalanobis (test.py)"
LEVEL = Testing.fields()["none_level"].default
COMMON, RARE = "common images that pass for rare", "rare images that pass for rare"


def main(argv: list[str] | None = None) -> None:
    parser = cli.ArgumentParser("Measure the score for belonging to no rare class.")
    parser.add_argument("data", type=Path, help="data folder")
    parser.add_argument("--resume", type=Path, required=True, help="checkpoint, or its folder")
    parser.add_argument("--k-shot", type=int, default=5, help="support images per class")
    parser.add_argument("--seeds", type=int, default=10, help="number of tasks and halves")
    parser.add_argument("--cache", type=Path, default=CACHE, help="cache folder")
    add_classes(parser)
    args = parser.parse_args(argv)
    baselines.register_all()
    checkpoint = load_checkpoint(args.resume)
    data = open_data(args.data, *classes_of(args, checkpoint))
    encoder = FrozenEncoder(checkpoint, pick_device("auto", None))
    size, augnum = encoder.image_size, STAGES[checkpoint["stage"]].augnum
    base, rare = (decoded(part, size, args.cache) for part in (data.base, data.rare))
    z_base, z_rare = encoder.embed(base, "base images"), encoder.embed(rare, "rare images")
    copies = encoder.copies(rare, augnum, "support copies")
    report(measure(data.rare, z_base, z_rare, copies, args.k_shot, args.seeds), args)


def measure(
    rare: ImageSet, base: np.ndarray, rare_embeddings: np.ndarray, copies: np.ndarray, k_shot: int,
    seeds: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Return AUC by method and seed, and the shares of images that pass for rare.

    base: M×D; rare_embeddings: K×D and copies: K×C×D, in the order of `rare`.
    """
    copies_of, embeddings_of = by_id(rare, copies), by_id(rare, rare_embeddings)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        task = draw_task(rare, None, k_shot, seed)
        support, query = task.support(rare), task.query(rare)
        order = np.random.default_rng(seed).permutation(len(base))
        half, held_out = (base[rows] for rows in np.array_split(order, 2))
        new, shots, labels = embeddings_of(query), copies_of(support), np.array(support.labels)
        reference = fit_reference(shots, labels, half, {})
        score_by = others(shots, labels, half) | {METHOD: reference.none_of_these}
        truth = np.repeat([1, 0], [len(held_out), len(new)])  # 1: none of these
        for name, none in score_by.items():
            auc = roc_auc_score(truth, np.concatenate([none(held_out), none(new)]))
            found.setdefault(name, []).append(auc)
        for name, part in ((COMMON, held_out), (RARE, new)):
            passed = (reference.none_of_these(part) <= LEVEL).mean()
            found.setdefault(name, []).append(passed)
    return found


def report(found: dict[str, list[float]], args: argparse.Namespace) -> None:
    """Print mean and standard deviation over the seeds, in percent."""
    print(f"{args.k_shot} shots, seeds 0 to {args.seeds - 1}; AUC but for the last two lines")
    width = max(map(len, found))
    for name, values in found.items():
        print(f"{name:{width}}{100 * np.mean(values):>7.1f} ({100 * np.std(values, ddof=1):.1f})")


def others(copies: np.ndarray, labels: np.ndarray, base: np.ndarray) -> dict:
    """Return other scores from the literature: of embeddings, M×D; higher: none of these."""
    count, number, dim = copies.shape
    flat, repeated = copies.reshape(-1, dim), np.repeat(labels, number)
    f_c = fit_classifier(flat, repeated)
    z, z_base = normalize(flat), normalize(base)
    means = np.stack([z[repeated == n].mean(axis=0) for n in np.unique(labels)])
    precision = np.linalg.inv(ledoit_wolf(z_base)[0])
    of_rare = np.repeat([1, 0], [len(z), len(z_base)])
    rare_or_base = LogisticRegression(class_weight="balanced", max_iter=1000)
    rare_or_base.fit(np.concatenate([z, z_base]), of_rare)

    def mahalanobis(new: np.ndarray) -> np.ndarray:
        apart = normalize(new)[:, None] - means
        return (apart @ precision * apart).sum(axis=2).min(axis=1)

    def neighbours(new: np.ndarray) -> np.ndarray:
        cosines = [normalize(new) @ those.T for those in (z, z_base)]
        k = max(1, len(z_base) // 100)
        return np.sort(cosines[1], axis=1)[:, -k:].mean(axis=1) - cosines[0].max(axis=1)

    return {
        "1 − highest class probability": lambda new: -f_c.predict_proba(new).max(axis=1),
        "Mahalanobis, base covariance": mahalanobis,
        "nearest support, cosine": lambda new: -(normalize(new) @ z.T).max(axis=1),
        "nearest base less nearest support": neighbours,
        "logistic regression, rare or base": lambda new: (
            -rare_or_base.decision_function(normalize(new))
        ),
    }


if __name__ == "__main__":
    cli.run(main)
