"""How the imbalance of the pseudo labels is met before the loss (`--pseudo-balance`).

No base image shows a rare class, so a teacher may call nearly all of them one class, the more so
the better its features are. The papers' cure, DIC, is in losses.py; those here are of later work on
imbalanced semi-supervised learning, and none of the papers'. p: M×N probabilities of the teacher
for all base images. They use the pseudo labels alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Balanced:
    """What L_cls is computed with: probabilities, M×N, from which its labels are made; a weight of
    each image, M; and what is added to the student's logits in training, N."""

    probabilities: Tensor
    weights: Tensor
    bias: Tensor


def balance(method: str, p: Tensor) -> Balanced:
    """Apply one method of `--pseudo-balance` to p, M×N; "none" leaves all as it is."""
    weights, bias = p.new_ones(len(p)), p.new_zeros(p.shape[1])
    if method in REASSIGN:
        p = REASSIGN[method](p)
    elif method in WEIGH:
        weights = WEIGH[method](p)
    elif method == "logit-adjust":
        bias = log_prior(p)
    return Balanced(p, weights, bias)


def align(p: Tensor) -> Tensor:
    """Distribution alignment to a uniform prior, ReMixMatch (Berthelot et al. 2020, arXiv
    1911.09785, section 3.1): p̃ = Normalize(p·prior/p̄), with p̄ the mean of p over all images.

    Returns M×N probabilities. A class that no image has any probability of keeps 0.
    """
    aligned = p / p.mean(dim=0).clamp(min=torch.finfo(p.dtype).tiny)
    return aligned / aligned.sum(dim=1, keepdim=True)


def sinkhorn(p: Tensor, iterations: int = 1000, tolerance: float = 1e-6) -> Tensor:
    """The assignment nearest to p (in KL) that gives every class the same number of images:
    Sinkhorn–Knopp as in SwAV (Caron et al. 2020, arXiv 2006.09882, eqs. 3–5), with ε = 1 and
    log p as scores.

    Each iteration is `align`. Returns M×N probabilities, whose columns sum to M/N.
    """
    assigned = p.double()
    for _ in range(iterations):
        assigned = align(assigned)
        if (assigned.mean(dim=0) * p.shape[1] - 1).abs().max() < tolerance:
            break
    return assigned.to(p)


def log_prior(p: Tensor) -> Tensor:
    """log π_n, added to the student's logits in training: logit adjustment (Menon et al. 2021,
    arXiv 2007.07314, eq. 10, τ = 1). π: the classes' shares of the probabilities p. Returns N
    values."""
    return p.mean(dim=0).clamp(min=torch.finfo(p.dtype).tiny).log()


def select(p: Tensor) -> Tensor:
    """Weights that keep the same number of images of each predicted class, the most confident: as
    many as the rarest predicted class has. Class-rebalancing self-training (CReST, Wei et al. 2021,
    arXiv 2102.09559) with α = 1, but by confidence.

    Returns M weights with mean 1, 0 of the images left out of L_cls.
    """
    confidence, labels = p.max(dim=1)
    found = labels.unique()
    kept = min(int((labels == n).sum()) for n in found)
    weights = torch.zeros_like(confidence)
    for n in found:
        rows = (labels == n).nonzero().flatten()
        weights[rows[confidence[rows].argsort(descending=True, stable=True)[:kept]]] = 1
    return weights / weights.mean()


def reweight(p: Tensor) -> Tensor:
    """Weights w ∝ 1/M_n of an image that is called class n, as M_n are: in expectation, sampling
    all classes alike. Returns M weights with mean 1."""
    labels = p.argmax(dim=1)
    weights = 1 / labels.bincount(minlength=p.shape[1]).to(p)[labels]
    return weights / weights.mean()


def confidence(p: Tensor) -> Tensor:
    """Weights w ∝ 1 − H(p)/log N, the teacher's confidence. Returns M weights with mean 1."""
    entropy = torch.special.entr(p).sum(dim=1)
    weights = 1 - entropy / math.log(p.shape[1])
    return weights / weights.mean()


REASSIGN = {"align": align, "sinkhorn": sinkhorn}
WEIGH = {"select": select, "reweight": reweight, "confidence": confidence}
