"""Calibration of class probabilities: expected calibration error, and the temperature."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15  # as in Guo et al. 2017
TINY = 1e-300  # a probability of 0 has no logarithm
RANGE = (0.01, 100.0)  # in which temperatures are sought


class Reliability(NamedTuple):
    """By bin of confidence: number of images, their accuracy and mean confidence (NaN if none)."""

    images: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    def error(self) -> float:
        """Return the expected calibration error (ECE), eq. (3) of Guo et al. (2017), as a fraction:
        how far confidence is from accuracy, Σ_m |B_m|/M · |acc(B_m) − conf(B_m)|."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.images * gaps).sum() / self.images.sum())


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> Reliability:
    """Return the bars of a reliability diagram (Guo et al. 2017).

    The confidence of an image is its highest probability; bin m of `bins` equally wide ones has
    those in ((m−1)/bins, m/bins]. probabilities: M×N; truth: M class indices.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(bin_of, values, bins) / images for values in (right, confidence))
        return Reliability(images, *sums)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(z/T) of probabilities softmax(z), M×N. Predictions stay the same."""
    return softmax(np.log(np.maximum(probabilities, TINY)) / temperature, axis=1)


def best_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature T > 0 with the smallest negative log-likelihood of M images.

    Guo et al. (2017), section 4.2, with Platt's (1999) targets: the true class has (M+1)/(M+2),
    the rest is shared by the others. If all of a few images are right, the plain likelihood is
    largest at T = 0. probabilities: M×N, of images that the classifier was not fitted on; truth: M
    class indices.
    """
    logits = np.log(np.maximum(probabilities, TINY))
    number, classes = logits.shape
    targets = np.full(logits.shape, 1 / (number + 2) / (classes - 1))
    targets[np.arange(number), truth] = (number + 1) / (number + 2)

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum()

    found = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
