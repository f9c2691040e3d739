"""SimCLR (Chen et al. 2020, arXiv 2002.05709) on the base images, without labels.

python -m baselines.simclr DATA --model_path OUT
python test.py DATA --resume OUT --k_shot 5 --seed 0

Its augmentation is the one that MoCo v2 took over (without: --no-aug-plus). What is kept is the
backbone; the projection head serves the loss alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.seeding import stream_seed
from datasets.open import open_data
from moco import config, resume
from models import build_encoder
from trainer import cli
from trainer.distributed import pick_device

from .common import train


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
    args = config.simclr_parser().parse_args(argv)
    resume.settle(args)
    base = open_data(args.data, args, use=["base"]).base
    device = pick_device(args.device, args.gpu)
    torch.manual_seed(stream_seed("simclr weights", args.seed))
    model = SimCLR(args.arch)

    def step(model, views, rows, epoch):
        logits, other_half = nt_xent_logits(model(views), args.simclr_t)
        right = logits.argmax(dim=1) == other_half
        return {"loss": F.cross_entropy(logits, other_half), "acc1": right.float().mean()}

    train("simclr", args, base, model, step, device, views=2)


if __name__ == "__main__":
    cli.run(main)
