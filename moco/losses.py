"""The paper's equations (numbered as in [J], Medical Image Analysis 2024), one function each.

`q`, `k`, `queue` are L2-normalised embeddings; `y` and p′ are rows of N class probabilities.
Losses are means over the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The similarities in eq. (1): q·k/τ, then q·k_j/τ for each queued key.

    q, k: B×D; queue: L×D. Returns logits B×(1+L), the positive in column 0.
    """
    positive = (q * k).sum(dim=1, keepdim=True)  # B×1
    negative = q @ queue.T  # B×L
    return torch.cat([positive, negative], dim=1) / temperature


def contrastive_loss(logits: Tensor) -> Tensor:
    """Eq. (1), L_con: the log loss of the (L+1)-way softmax that should pick the positive.

    logits: B×(1+L) of `contrastive_logits`. By chance it is log(L+1).
    """
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def distillation_loss(loss_con: Tensor, loss_cls: Tensor) -> Tensor:
    """Eq. (2), L_dis: contrast and classification with equal weights."""
    return loss_con + loss_cls


def cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    """Eq. (3), L_cls for (adaptive) hard labels: −Σ_n y_n log p′_n, with p′ = softmax(logits).

    y: B×N probabilities; logits: B×N of F′.
    """
    return -(y * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def adaptive_labels(y: Tensor, logits: Tensor, epoch: int, epochs: int, alpha: float) -> Tensor:
    """Eq. (5): y_adpt = (1−α_t) y + α_t p′, α_t = α_T·t/T; no gradient flows through p′.

    y: B×N pseudo labels; logits: B×N of F′; t = `epoch` counts from 0, T = `epochs`,
    α_T = `alpha`.
    """
    alpha_t = alpha * epoch / epochs
    return (1 - alpha_t) * y + alpha_t * logits.detach().softmax(dim=1)


def kl_divergence(y: Tensor, logits: Tensor) -> Tensor:
    """Eq. (4), L_cls for (adaptive) soft labels: KL(y ∥ p′) = Σ_n y_n log(y_n / p′_n).

    y: B×N probabilities; logits: B×N of F′.
    """
    return F.kl_div(F.log_softmax(logits, dim=1), y, reduction="batchmean")
