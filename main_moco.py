"""Stage (a): learn an encoder from the base images, without labels, by momentum contrast.

python main_moco.py DATA --model_path OUT
"""

import torch
from torch import Tensor, nn

from common.seeding import stream_seed
from datasets.images import ImageSet
from datasets.open import decoded, open_data
from moco import config, losses, resume
from moco.builder import MoCo, contrast_accuracy
from trainer import cli
from trainer.launch import launch
from trainer.provenance import provenance
from trainer.trainer import fit


def main(argv: list[str] | None = None) -> None:
    args = config.pretraining_parser().parse_args(argv)
    plan = config.launch_plan(args)
    resume.settle(args)
    base = open_data(args.data, args, use=["base"]).base
    groups = resume.batchnorm_groups(args, len(base), plan.processes)
    about = {
        "stage": "moco",
        "args": config.recorded(args),
        "base": base.fingerprint(),
        "task": None,
        "made_by": provenance(),
    }
    resume.check_run(args, about)
    base = decoded(args, base, args.image_size)
    launch(plan, worker, args, base, groups, about)


def worker(device: torch.device, args, base: ImageSet, groups: int, about: dict) -> None:
    """One process of the run."""
    torch.manual_seed(stream_seed("weights", args.seed))
    model = MoCo(**config.encoder_values(args), batchnorm_groups=groups)
    training = resume.training_values(args, base, device)
    fit(model, step, base, about, device=device, **training)


def step(model: nn.Module, views: list[Tensor], rows: Tensor, epoch: int) -> dict[str, Tensor]:
    """Eq. (1), L_con, of a batch's two views."""
    logits, _ = model(*views)
    return {"loss": losses.contrastive_loss(logits), **contrast_accuracy(logits)}


if __name__ == "__main__":
    cli.run(main, several=True)
