"""Does an image belong to none of the rare classes? Its distance to them beside the base images'.

Relative Mahalanobis distance (Ren et al. 2021, arXiv:2106.09022) on L2-normalised embeddings, as
Sehwag et al. (2021) advise for contrastive ones, and conformal p-values (Bates et al. 2023). Uses
no labels of the base images.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from common.errors import InputError, refusing
from common.files import atomic_write, parse_json, read_array

FORMAT = 1
FOLDS = 5
FEWEST = 4  # base images: fits on three; the covariance of two has rank one, however shrunk
ARRAYS = ("weights", "biases", "base_scores", "sizes", "about")


def relative_mahalanobis(means: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return W, N×D, and b, N: z ↦ Wz + b is the relative Mahalanobis distance to each class.

    It is MD_n(z) − MD_0(z), with MD_n(z) = (z−μ_n)ᵀΣ⁻¹(z−μ_n): the distance to the mean μ_n of rare
    class n less that to the mean μ_0 of the base images. A few shots give no covariance, so Σ is
    that of the base images, shrunk (Ledoit and Wolf 2004), in both: z's quadratic term cancels.
    means: N×D; base: M×D.
    """
    covariance, _ = ledoit_wolf(base)
    mean = base.mean(axis=0)
    w, w_0 = np.linalg.solve(covariance, means.T).T, np.linalg.solve(covariance, mean)
    return -2 * (w - w_0), (w * means).sum(axis=1) - w_0 @ mean


def nearest(z: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Return the relative Mahalanobis distance of M embeddings, M×D, to the nearest rare class."""
    return (z @ weights.T + biases).min(axis=1)


@dataclass(frozen=True)
class Reference:
    """What embeddings are compared with: of each of F fits, W and b of `relative_mahalanobis`,
    F×N×D and F×N, and the sorted scores of the base images that it left out. `about` says of which
    checkpoint, task and base images."""

    weights: np.ndarray
    biases: np.ndarray
    base_scores: list[np.ndarray]
    about: dict

    @property
    def base_images(self) -> int:
        return sum(map(len, self.base_scores))

    def none_of_these(self, embeddings: np.ndarray) -> np.ndarray:
        """Return how much M embeddings, M×D, look like none of the rare classes, in (0, 1].

        The p-value of a common image by cross-conformal prediction (Vovk 2015): the share of the
        base images that look at least as rare. Each is compared by the fit that left it out, so
        that of new common images about the share P has a value of at most P.
        """
        z = normalize(embeddings.astype(np.float64))
        count = sum(  # of base images whose distance is not larger
            np.searchsorted(left_out, nearest(z, w, b), side="right")
            for w, b, left_out in zip(self.weights, self.biases, self.base_scores)
        )
        return (1 + count) / (1 + self.base_images)

    def save(self, file: Path) -> None:
        """Write an .npz file without pickles."""
        about = np.array(json.dumps({"format": FORMAT, **self.about}))
        with atomic_write(file) as out:
            np.savez(
                out, weights=self.weights, biases=self.biases, about=about,
                base_scores=np.concatenate(self.base_scores),
                sizes=np.array([len(scores) for scores in self.base_scores]),
            )  # fmt: skip


def fit_reference(
    copies: np.ndarray, labels: np.ndarray, base: np.ndarray, about: dict
) -> Reference:
    """Return the reference of a support set, from the embeddings of C copies of K images, K×C×D,
    with class indices `labels`, and those of M base images, M×D.

    Raises InputError if these are fewer than FEWEST, or all the same.
    """
    base = normalize(base.astype(np.float64))
    if len(base) < FEWEST or base.var(axis=0).sum() < 1e-12:  # 1e-12: far above float32's rounding
        raise InputError(
            f"at least {FEWEST} base images with different embeddings are needed, got {len(base)}"
        )
    copies = np.stack([normalize(of_image.astype(np.float64)) for of_image in copies])
    means = np.stack([copies[labels == n].mean(axis=(0, 1)) for n in np.unique(labels)])
    fits, scores = [], []
    for fitted, left_out in KFold(min(FOLDS, len(base)), shuffle=True, random_state=0).split(base):
        fits.append(relative_mahalanobis(means, base[fitted]))
        scores.append(np.sort(nearest(base[left_out], *fits[-1])))
    weights, biases = (np.stack(parts) for parts in zip(*fits))
    return Reference(weights, biases, scores, about)


def load_reference(file: Path) -> Reference:
    """Read a file of `Reference.save`. Raises InputError if it is damaged."""
    with refusing(f"{file} is invalid; remove it"), zipfile.ZipFile(file) as arrays:
        weights, biases, scores, sizes, about = (read_array(arrays, name) for name in ARRAYS)
        fits, *_ = weights.shape
        expected = weights.shape[:2], (fits,), (sizes.sum(),)
        shapes = biases.shape, sizes.shape, scores.shape
        if shapes != expected or weights.ndim != 3 or (sizes < 1).any():
            raise ValueError("arrays of other shapes than expected")
        if not all(np.isfinite(x).all() for x in (weights, biases, scores)):
            raise ValueError("NaN or Inf")
        left_out = np.split(scores, sizes.cumsum()[:-1])
        told = parse_json(str(about), FORMAT)
        told.pop("format", None)
        return Reference(weights, biases, left_out, told)
