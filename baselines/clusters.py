"""Clusters of unlabelled images as classes: Algorithm 1 of CACTUs (Hsu et al. 2019, arXiv
1810.02334).

The images are embedded by stage (a)'s encoder, normalised, whitened and normalised again, as the
authors do with DeepCluster's embeddings. k-means partitions them several times, each time with the
dimensions scaled at random, except for the first. The embeddings are not used further.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from tqdm import tqdm

from common.errors import InputError, refusing
from common.files import atomic_write, read_array
from common.seeding import stream_seed
from moco import resume
from moco.checkpoint import load_checkpoint, note_on_epochs, require_trained_on
from moco.config import STAGES
from moco.evaluate import FrozenEncoder
from trainer.launch_plan import readers_of
from trainer.settings import Settings, setting

from .common import Start
from .episodes import Groups

FILE = "partitions.npz"
MOST_CLUSTERS, IMAGES_PER_CLUSTER = 500, 20
SMALLEST_EIGENVALUE = 1e-10  # of the largest; below it is rounding
SMALLEST_VARIANCE = 1e-14  # of embeddings of length 1; below it is rounding


@dataclass(frozen=True, kw_only=True)
class Clustering(Settings):
    """clusters"""

    encoder: Path = setting(help="stage (a)'s checkpoint, which embeds the images", metavar="PATH")
    clusters: int | None = setting(
        None, f"clusters of a partition (default: {MOST_CLUSTERS}, or fewer so that they have "
        f"{IMAGES_PER_CLUSTER} images on average)", low=2, metavar="N", fixed=True,
    )  # fmt: skip
    partitions: int = setting(50, "number of partitions", low=1, metavar="P", fixed=True)
    k_shot: int = setting(
        1, "support images per class of an episode", low=1, metavar="K", fixed=True
    )


def whiten(embeddings: np.ndarray) -> np.ndarray:
    """Return M×D embeddings normalised, whitened by PCA, and normalised again; directions without
    variance are left out. Raises InputError if no direction is left."""
    x = normalize(embeddings.astype(np.float64))
    if x.var(axis=0).max() < SMALLEST_VARIANCE:
        raise InputError("the encoder gives the same embedding for all images: it has collapsed")
    pca = PCA(svd_solver="full").fit(x)
    variances = pca.explained_variance_
    used = variances > SMALLEST_EIGENVALUE * variances[0]
    return normalize(pca.transform(x)[:, used] / np.sqrt(variances[used]))


def partition(embeddings: np.ndarray, clusters: int, number: int, seed: int) -> np.ndarray:
    """Return `number` k-means clusterings of M×D embeddings, P×M, each with values below
    `clusters`. In all but the first each dimension is scaled by a random factor in [0, 1)."""
    found = []
    for p in tqdm(range(number), desc="clustering", delay=2, leave=False, disable=None):
        random_state = stream_seed("clusters", seed, p)
        scale = np.random.default_rng(random_state).random(embeddings.shape[1]) if p else 1.0
        means = KMeans(clusters, n_init=1, max_iter=3000, random_state=random_state)
        found.append(means.fit_predict(embeddings * scale).astype(np.int32))
    return np.stack(found)


def groups_of(
    partitions: np.ndarray, k_shot: int, query: int, n_way: int
) -> tuple[list[Groups], int]:
    """Return each partition's clusters that are large enough for an episode, as rows, and the
    number of query images: at most `query`, and so many that ¾ of the clusters are large enough.

    Partitions with fewer than `n_way` such clusters are left out. Raises InputError if none is
    left.
    """
    clusters = [[np.flatnonzero(labels == c) for c in np.unique(labels)] for labels in partitions]
    sizes = [len(rows) for groups in clusters for rows in groups]
    query = max(1, min(query, int(np.quantile(sizes, 0.25)) - k_shot))
    large = [[rows for rows in groups if len(rows) >= k_shot + query] for groups in clusters]
    if not (enough := [groups for groups in large if len(groups) >= n_way]):
        raise InputError(
            f"no partition has {n_way} clusters of {k_shot + query} images; reduce --clusters"
        )
    return enough, query


def cluster_base(start: Start, n_way: int) -> tuple[list[Groups], int, dict[str, Any]]:
    """Return `groups_of` the base images, and what a checkpoint records of them.

    The settings are `Clustering` and `Episodic` ones. Takes the partitions from the run's folder or
    computes and writes them. Raises InputError if the encoder does not fit the base images, or the
    run was trained on other partitions.
    """
    settings, source, base = start.settings, start.source, start.data.base
    checkpoint = load_checkpoint(settings.encoder)
    if STAGES[checkpoint["stage"]].trained:
        require_trained_on(checkpoint, base, settings.encoder)
    note_on_epochs(checkpoint, settings.encoder)
    most = min(MOST_CLUSTERS, len(base) // IMAGES_PER_CLUSTER)
    clusters = settings.clusters or max(2 * n_way, most)
    if not n_way <= clusters <= len(base):
        raise InputError(f"--clusters must be in [{n_way}, {len(base)}], got {clusters}")
    about = {"encoder": {name: checkpoint[name] for name in ("stage", "epoch", "made_by")},
             "base": base.fingerprint(), "clusters": clusters, "partitions": settings.partitions,
             "seed": settings.seed}  # fmt: skip
    file = settings.model_path / FILE
    partitions = _read(file, about)
    if partitions is None:
        workers = readers_of(settings)
        encoder = FrozenEncoder(checkpoint, start.device, settings.amp, workers=workers)
        images = settings.decoded(base, encoder.image_size)
        z = whiten(encoder.embed(images, progress="embedding"))
        partitions = partition(z, clusters, settings.partitions, settings.seed)
        if settings.overwrite or not resume.holds_run(settings.model_path):
            with atomic_write(file) as out:
                np.savez_compressed(out, partitions=partitions, about=np.array(json.dumps(about)))
    digest = hashlib.sha256(partitions.tobytes()).hexdigest()
    if source and source.checkpoint.get("clusters") != digest:
        raise InputError(
            f"{source.path} was trained on other clusters than those of {settings.encoder} with "
            "these settings"
        )
    groups, query = groups_of(partitions, settings.k_shot, settings.query, n_way)
    return groups, query, {"clusters": digest}


def _read(file: Path, about: dict[str, Any]) -> np.ndarray | None:
    """Return the partitions in `file` if they are those of `about`, else None."""
    if not file.exists():
        return None
    with refusing(f"{file} is invalid; remove it"), ZipFile(file) as archive:
        if str(read_array(archive, "about")) != json.dumps(about):  # also in the order of classes
            return None
        return read_array(archive, "partitions")
