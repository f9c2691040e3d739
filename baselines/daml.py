"""Difficulty-aware meta-learning (Li et al. 2020, arXiv 1907.00354), on the base classes.

python -m baselines.daml DATA --model-path OUT --k-shot 5
python test.py DATA --resume OUT --k-shot 5 --seed 0

MAML with another outer loss, in which easy tasks count less. η, ε and the sign-free form are in a
line of Sun et al.'s code; the paper's own values could not be checked. All other settings are
MAML's, so that the two rows differ in the loss alone.

The loss is made for L < 1. At chance a task of three classes has L = ln 3: the logarithm is then
constant, ln ε, until L falls below 1 − ε, where the slope reaches 1/ε; --clip bounds that step. The
log tells the share of such tasks as `clamped`.
"""

from dataclasses import dataclass

from torch import Tensor

from moco.config import Stage, register
from trainer import cli
from trainer.settings import setting

from .maml import MAML, MAMLSettings, start_maml, train_maml


@dataclass(frozen=True, kw_only=True)
class DAMLSettings(MAMLSettings):
    """baselines/daml.py"""

    description = "Difficulty-aware meta-learning, DAML, on the base classes."

    eta: float = setting(
        5.0, "exponent of the loss; the larger, the less easy tasks count", low=0, metavar="E",
        fixed=True,
    )  # fmt: skip
    eps: float = setting(
        1e-4, "lower bound of 1 - loss in the logarithm", low=1e-12, below=1, metavar="EPS",
        fixed=True,
    )  # fmt: skip


def daml_loss(loss: Tensor, eta: float, eps: float) -> Tensor:
    """Return −L^η · log(max(ε, 1 − L)) of a task's query loss L."""
    return -(loss**eta) * (1 - loss).clamp(min=eps).log()


register(Stage("daml", "DAML, baselines/daml.py", DAMLSettings, adapts=MAML))


def main(argv: list[str] | None = None) -> None:
    run = start_maml("daml", argv)
    eta, eps = run.settings.eta, run.settings.eps

    def outer_loss(loss: Tensor) -> dict[str, Tensor]:
        clamped = (1 - loss <= eps).float()
        return {"loss": daml_loss(loss, eta, eps), "query_loss": loss, "clamped": clamped}

    train_maml(run, outer_loss=outer_loss)


if __name__ == "__main__":
    cli.run(main)
