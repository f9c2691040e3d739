"""The papers' equations, one function each; numbers are those of Sun et al. 2024 (Medical Image
Analysis 93, 103102).

`q`, `k`, `queue` are L2-normalised embeddings; `y` and p′ are rows of N class probabilities.
Losses are means over the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarities of eq. (1): q·k/τ, then q·k_j/τ for each key in the queue.

    q, k: B×D; queue: L×D. Returns logits B×(1+L), the positive in column 0.
    """
    positive = (q * k).sum(dim=1, keepdim=True)  # B×1
    negative = q @ queue.T  # B×L
    return torch.cat([positive, negative], dim=1) / temperature


def contrastive_loss(logits: Tensor) -> Tensor:
    """Eq. (1), L_con: cross entropy of the (L+1)-way softmax with the positive as target.

    logits: B×(1+L) of `contrastive_logits`. Chance level: log(L+1).
    """
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def distillation_loss(parts: dict[str, Tensor], kinds: str) -> Tensor:
    """Eq. (2), L_dis, for `kinds` "con+cls"; other sums are rows of Table 7.

    The sum of the `parts` named in `kinds`, with equal weights. The others get weight 0, so that no
    parameter is unused, which DistributedDataParallel requires.
    """
    return sum((name in kinds.split("+")) * loss for name, loss in parts.items())


def cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    """Eq. (3), L_cls for (adaptive) hard labels: −Σ_n y_n log p′_n, with p′ = softmax(logits).

    y: B×N probabilities; logits: B×N of F′.
    """
    return -(y * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def kl_divergence(y: Tensor, logits: Tensor) -> Tensor:
    """Eq. (4), L_cls for (adaptive) soft labels: KL(y ∥ p′) = Σ_n y_n log(y_n / p′_n).

    y: B×N probabilities; logits: B×N of F′.
    """
    return F.kl_div(F.log_softmax(logits, dim=1), y, reduction="batchmean")


def adaptive_labels(y: Tensor, p: Tensor, epoch: int, epochs: int, alpha: float) -> Tensor:
    """Eq. (5): y_adpt = (1−α_t) y + α_t p′, with α_t = α_T·t/T.

    y: B×N pseudo labels; p: B×N, the student's p′, detached to block gradients through the labels;
    t = `epoch` counts from 0, T = `epochs`, α_T = `alpha`.
    """
    alpha_t = alpha * epoch / epochs
    return (1 - alpha_t) * y + alpha_t * p


def corrected_logits(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Logits divided by the class temperatures τ_n, eqs. (6)–(9): their softmax is p_DIC.

    logits: B×N of F′; temperatures: N.
    """
    return logits / temperatures


def class_temperatures(v: Tensor, gamma: float, scale: float = 1.0) -> Tensor:
    """τ_n = β_n + 1 − max_j β_j, with β_n = γ v_n / Σ_i v_i + (1−γ), of eqs. (6)–(9).

    v: N non-negative weights: the classes' dispersions (DIC) or numbers of images (DDL). The class
    of largest weight gets τ = 1, the others at least 1−γ·scale; if all v are 0, all get 1. `scale`
    multiplies v_n / Σ_i v_i. The code of Wang et al. 2021 (RIDE), the basis of DDL and of the
    authors' DIC, has scale N, and divides β_n by max_j β_j instead of adding 1 − max_j β_j.
    """
    beta = scale * gamma * v / v.sum().clamp(min=torch.finfo(v.dtype).tiny) + (1 - gamma)
    return 1 - (beta.max() - beta)


def dispersions(embeddings: Tensor, labels: Tensor, n_way: int, kind: str) -> Tensor:
    """Eq. (8): the dispersions v_n of the embeddings of the images labelled n; N values.

    embeddings: M×D, not normalised; labels: M class indices. The papers and their code define three
    kinds: "normalized", the variance of the L2-normalised embeddings, "raw", of the embeddings
    themselves (both averaged over the D dimensions), and "norm", of their L2 norms. A class without
    images has 0.
    """
    if kind == "normalized":
        features = F.normalize(embeddings, dim=1)
    elif kind == "norm":
        features = embeddings.norm(dim=1, keepdim=True)
    else:
        features = embeddings
    variances = [
        features[labels == n].var(dim=0, correction=0).mean()
        if (labels == n).any()
        else features.new_zeros(())
        for n in range(n_way)
    ]
    return torch.stack(variances)


def regression(teacher_embeddings: Tensor, embeddings: Tensor) -> Tensor:
    """L_reg of Table 7: mean absolute difference between student's and teacher's embeddings.

    Both B×D, not normalised.
    """
    return F.l1_loss(embeddings, teacher_embeddings)


def released_loss(y: Tensor, logits: Tensor, temperatures: Tensor | None = None) -> Tensor:
    """L_cls of the authors' code (`--cls-loss released`), which applies the softmax twice.

    T²·KL(softmax(y/T) ∥ softmax(p′/T)), T = 2, with gradient through y. In their DIC code y is
    detached, and T are the class `temperatures` τ_n, N, with T² = mean(τ)². y: B×N probabilities;
    logits: B×N of F′.
    """
    p = logits.softmax(dim=1)
    if temperatures is None:
        return tempered_kl(y, p, 2.0)
    return tempered_kl(y.detach(), p, temperatures)


def tempered_kl(target_logits: Tensor, logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T²·KL(softmax(target/T) ∥ softmax(logits/T)), Hinton et al. 2015; both B×N.

    T may be a tensor of N class temperatures; T² is then their squared mean.
    """
    target = (target_logits / temperature).softmax(dim=1)
    log_p = F.log_softmax(logits / temperature, dim=1)
    mean = temperature.mean() if isinstance(temperature, Tensor) else temperature
    return mean**2 * F.kl_div(log_p, target, reduction="batchmean")


def classification_loss(
    y: Tensor,
    logits: Tensor,
    temperatures: Tensor | None,
    epoch: int,
    epochs: int,
    alpha: float,
    pseudo_label: str,
    cls_loss: str,
) -> Tensor:
    """L_cls(y_adpt, p_DIC) on the corrected logits: eq. (3) for hard labels, eq. (4) for soft ones.

    y: B×N, one-hot for hard labels; logits: B×N of F′; temperatures: N, of DIC or DDL, or None.
    `pseudo_label`: "hard" or "soft", or with eq. (5) "adaptive-hard" or "adaptive-soft".
    `cls_loss`: "paper" or "released", see `released_loss`.
    """
    p = logits.softmax(dim=1)
    if cls_loss == "paper":
        p = p.detach()
    if pseudo_label.startswith("adaptive"):
        y = adaptive_labels(y, p, epoch, epochs, alpha)
    if cls_loss == "released":
        return released_loss(y, logits, temperatures)
    if temperatures is not None:
        logits = corrected_logits(logits, temperatures)
    return cross_entropy(y, logits) if pseudo_label.endswith("hard") else kl_divergence(y, logits)
