"""SimCLR (Chen et al. 2020, arXiv 2002.05709) on the base images, without labels.

python -m baselines.simclr DATA --model_path OUT
python test.py DATA --resume OUT --k_shot 5 --seed 0

Its augmentation is the one that MoCo v2 took over (without: --no-aug-plus). What is kept is the
backbone; the projection head serves the loss alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.seeding import stream_seed
from datasets.open import open_data
from moco import resume
from moco.config import Stage, register
from models import build_encoder
from trainer import cli
from trainer.distributed import pick_device
from trainer.settings import parse, setting, with_default

from .common import Baseline, train_baseline


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings(Baseline):
    """baselines/simclr.py"""

    description = "SimCLR on the base images, without labels."

    aug_plus: bool = with_default(Baseline, "aug_plus", True)
    simclr_t: float = setting(0.5, "temperature of the loss", low=1e-6, metavar="T", fixed=True)


register(Stage("simclr", "SimCLR, baselines/simclr.py", SimCLRSettings))


def nt_xent_logits(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The similarities in eq. (1), each view's to all others, and where its other half is.

    z: 2B×D, normalised, the B first views before the B second. Returns logits 2B×2B, −∞ on the
    diagonal, and 2B column indices; the loss is the log loss of picking these, NT-Xent.
    """
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    return logits, torch.arange(len(z), device=z.device).roll(len(z) // 2)


class SimCLR(nn.Module):
    """f, a backbone, and g, the projection head of one hidden layer."""

    def __init__(self, arch: str, projection_dim: int = 128):
        super().__init__()
        self.query_encoder = build_encoder(arch, None)
        width = self.query_encoder.out_features
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_dim)
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        """Two views of B images to normalised projections, 2B×D, in one batch."""
        return F.normalize(self.projection(self.query_encoder(torch.cat(views))), dim=1)


def main(argv: list[str] | None = None) -> None:
    given = parse(SimCLRSettings, argv)
    settings, source = resume.resolve_training(SimCLRSettings, given)
    classes = settings.base_classes, settings.rare_classes
    base = open_data(settings.data, *classes, settings.skip_unreadable, use=["base"]).base
    device = pick_device(settings.device, settings.gpu)
    torch.manual_seed(stream_seed("simclr weights", settings.seed))
    model = SimCLR(settings.arch)

    def step(model, views, rows, epoch):
        logits, other_half = nt_xent_logits(model(views), settings.simclr_t)
        right = logits.argmax(dim=1) == other_half
        return {"loss": F.cross_entropy(logits, other_half), "acc1": right.float().mean()}

    train_baseline("simclr", settings, source, base, model, step, device, views=2)


if __name__ == "__main__":
    cli.run(main)
