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


def distillation_loss(parts: dict[str, Tensor], kinds: str) -> Tensor:
    """Eq. (2), L_dis, for `kinds` "con+cls"; for others, Table 7's rows: the sum, with equal
    weights, of the `parts` that `kinds` names.

    The rest have weight 0: then no parameter is unused, which parallel training would not bear.
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

    y: B×N pseudo labels; p: B×N, the student's p′, detached if no gradient is to flow through the
    labels; t = `epoch` counts from 0, T = `epochs`, α_T = `alpha`.
    """
    alpha_t = alpha * epoch / epochs
    return (1 - alpha_t) * y + alpha_t * p


def corrected_logits(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Each class's logit over its temperature τ_n, eqs. (6)–(9): their softmax is p_DIC.

    logits: B×N of F′; temperatures: N.
    """
    return logits / temperatures


def class_temperatures(v: Tensor, gamma: float, scale: float = 1.0) -> Tensor:
    """τ_n = β_n + 1 − max_j β_j, with β_n = γ v_n / Σ_i v_i + (1−γ), of eqs. (6)–(9).

    v: N weights, not negative: the classes' dispersions (DIC), or how many images each has (DDL).
    The heaviest class gets τ = 1, the others down to 1−γ; all get 1 where every v is 0. `scale`
    multiplies v_n / Σ_i v_i. The code of Wang et al. 2021 (RIDE), on which DDL and the authors' DIC
    rest, has N there, and divides β_n by max_j β_j instead of adding 1 − max_j β_j.
    """
    beta = scale * gamma * v / v.sum().clamp(min=torch.finfo(v.dtype).tiny) + (1 - gamma)
    return 1 - (beta.max() - beta)


def dispersions(embeddings: Tensor, labels: Tensor, n_way: int, kind: str) -> Tensor:
    """Eq. (8): v_n, how widely the embeddings of the images labelled n are spread; N values.

    embeddings: M×D, not normalised; labels: M class indices. The papers and their code tell it
    in three ways. `kind`: "normalized", the variance of the L2-normalised embeddings, "raw", that
    of the embeddings as they are (both averaged over the D dimensions), "norm", the variance of
    their lengths. A class without images has 0.
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
    """L_reg of Table 7: the mean absolute difference of the student's embeddings from the
    teacher's; both B×D, not normalised."""
    return F.l1_loss(embeddings, teacher_embeddings)


def released_loss(y: Tensor, logits: Tensor) -> Tensor:
    """L_cls as in the authors' code (`--cls-loss released`): T²·KL(softmax(y/T) ∥ softmax(p′/T)),
    T = 2, on probabilities that are softmaxed once more.

    y: B×N probabilities, through which gradient flows as well; logits: B×N of F′.
    """
    return tempered_kl(y, logits.softmax(dim=1), 2.0)


def released_dic_loss(y: Tensor, logits: Tensor, temperatures: Tensor) -> Tensor:
    """L_cls as in the authors' code of DIC (`--cls-loss released` with a correction):
    mean(τ)²·KL(softmax(y/τ) ∥ softmax(p′/τ)), each class's probability over its temperature τ_n.

    y: B×N probabilities, through which no gradient flows; logits: B×N of F′; temperatures: N.
    """
    return tempered_kl(y.detach(), logits.softmax(dim=1), temperatures)


def tempered_kl(target_logits: Tensor, logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T²·KL(softmax(target/T) ∥ softmax(logits/T)), Hinton et al. 2015; both B×N.

    T may be a tensor of N temperatures, one a class; then T² is their squared mean.
    """
    target = (target_logits / temperature).softmax(dim=1)
    log_p = F.log_softmax(logits / temperature, dim=1)
    mean = temperature.mean() if isinstance(temperature, Tensor) else temperature
    return mean**2 * F.kl_div(log_p, target, reduction="batchmean")


def classification_loss(
    y: Tensor,
    logits: Tensor,
    temperatures: Tensor,
    epoch: int,
    epochs: int,
    alpha: float,
    pseudo_label: str,
    cls_loss: str,
    corrected: bool,
) -> Tensor:
    """L_cls(y_adpt, p_DIC): eq. (3) for hard labels, eq. (4) for soft ones, on the corrected
    logits; the labels adapted by eq. (5) if `pseudo_label` ("adaptive-hard", "soft", …) says so.

    y: B×N, one-hot for hard labels; logits: B×N of F′; temperatures: N. `cls_loss`: "paper", or
    "released", which has a form of its own for DIC and DDL (`corrected`); without them gradient
    also flows through the labels.
    """
    p = logits.softmax(dim=1)
    if cls_loss == "paper":
        p = p.detach()
    if pseudo_label.startswith("adaptive"):
        y = adaptive_labels(y, p, epoch, epochs, alpha)
    if cls_loss == "released":
        if corrected:
            return released_dic_loss(y, logits, temperatures)
        return released_loss(y, logits)
    logits = corrected_logits(logits, temperatures)
    return cross_entropy(y, logits) if pseudo_label.endswith("hard") else kl_divergence(y, logits)
