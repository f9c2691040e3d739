"""Stage (a): learn an encoder from the base images, without labels, by momentum contrast.

python main_moco.py DATA --model-path OUT
"""

import common.startup  # noqa: F401

import torch
from torch import Tensor, nn

import baselines
from common.seeding import stream_seed
from datasets.images import ImageSet
from moco import losses, resume
from moco.builder import MoCo, contrast_accuracy
from moco.config import Pretraining
from moco.train import train
from moco.weights import weights_record
from trainer import cli
from trainer.flags import parse
from trainer.launch import launch
from trainer.launch_plan import plan_of
from trainer.trainer import Run

baselines.register_all()  # here, so that the processes which it spawns do so, too


def main(argv: list[str] | None = None) -> None:
    settings, source = resume.resolve_training(Pretraining, parse(Pretraining, argv))
    plan = plan_of(settings)
    data = settings.open_data(use=["base"], show=plan.first_rank == 0)
    groups = resume.batchnorm_groups(settings, len(data.base), plan.world_size)
    weights = weights_record(settings, source)
    run, base = resume.prepare_run("moco", settings, source, data, data.base, weights=weights)
    launch(plan, worker, settings, base, groups, run)


def worker(
    device: torch.device, settings: Pretraining, base: ImageSet, groups: int, run: Run
) -> None:
    """Train on one rank."""
    torch.manual_seed(stream_seed("weights", settings.seed))
    model = MoCo(**settings.encoder_pair(), batchnorm_groups=groups)
    train(model, step, base, settings, run, device)


def step(model: nn.Module, views: list[Tensor], rows: Tensor, epoch: int) -> dict[str, Tensor]:
    """Compute eq. (1), L_con, of two views of a batch."""
    logits, _ = model(*views)
    return {"loss": losses.contrastive_loss(logits), **contrast_accuracy(logits)}


if __name__ == "__main__":
    cli.run(main, several=True)
