"""SimCLR (Chen et al. 2020, arXiv 2002.05709) on the base images, without labels.

python -m baselines.simclr DATA --model-path OUT
python test.py DATA --resume OUT --k-shot 5 --seed 0

The augmentation is that of MoCo v2 (--no-aug-plus turns it off). Scores use the backbone; the
projection head is only for the loss.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.config import Stage, register
from models import build_encoder
from trainer import cli
from trainer.settings import setting, with_default

from .common import Baseline, start, train_baseline


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings(Baseline):
    """baselines/simclr.py"""

    description = "SimCLR on the base images, without labels."

    aug_plus: bool = with_default(Baseline, "aug_plus", True)
    simclr_t: float = setting(0.5, "temperature of the loss", low=1e-6, metavar="T", fixed=True)


register(Stage("simclr", "SimCLR, baselines/simclr.py", SimCLRSettings))


def nt_xent_logits(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logits and targets of NT-Xent, eq. (1).

    z: 2B×D, normalised, the B first views before the B second. Returns logits, 2B×2B with −∞ on the
    diagonal, and the column of each row's positive, 2B; their cross-entropy is the loss.
    """
    diagonal = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(diagonal, -torch.inf)
    return logits, torch.arange(len(z), device=z.device).roll(len(z) // 2)


class SimCLR(nn.Module):
    """Backbone f and projection head g with one hidden layer."""

    def __init__(self, arch: str, image_size: int, projection_dim: int = 128):
        super().__init__()
        self.query_encoder = build_encoder(arch, None, image_size=image_size)
        features = self.query_encoder.out_features
        self.projection = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, projection_dim)
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        """Map two views of B images to normalised projections, 2B×D, in one batch."""
        return F.normalize(self.projection(self.query_encoder(torch.cat(views))), dim=1)


def main(argv: list[str] | None = None) -> None:
    run = start("simclr", argv)
    settings = run.settings
    run.seed_weights()
    model = SimCLR(settings.arch, settings.image_size)

    def step(model, views, rows, epoch):
        logits, positives = nt_xent_logits(model(views), settings.simclr_t)
        correct = logits.argmax(dim=1) == positives
        return {"loss": F.cross_entropy(logits, positives), "acc1": correct.float().mean()}

    train_baseline(run, run.data.base, model, step, views=2)


if __name__ == "__main__":
    cli.run(main)
