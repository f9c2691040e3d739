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
from trainer.config import launch_plan
from trainer.launch import launch
from trainer.settings import parse


def main(argv: list[str] | None = None) -> None:
    baselines.register_all()
    given = parse(Pretraining, argv)
    settings, source = resume.resolve_training(Pretraining, given)
    plan = launch_plan(settings)
    data = settings.open_data(use=["base"], show=plan.first_rank == 0)
    base = data.base
    groups = resume.batchnorm_groups(settings, len(base), plan.world_size)
    weights = weights_record(settings, source)
    about = resume.about_run("moco", settings, data, base, weights=weights)
    resume.check_run(settings, about, base, source)
    base = settings.decoded(base, settings.image_size, settings.views_by == "batch")
    launch(plan, worker, settings, base, groups, about, source)


def worker(
    device: torch.device,
    settings: Pretraining,
    base: ImageSet,
    groups: int,
    about: dict,
    source: resume.Source | None,
) -> None:
    """Train on one rank."""
    torch.manual_seed(stream_seed("weights", settings.seed))
    model = MoCo(**settings.encoder_pair(), batchnorm_groups=groups)
    train(model, step, base, settings, resume.run_of(settings, about, source), device)


def step(model: nn.Module, views: list[Tensor], rows: Tensor, epoch: int) -> dict[str, Tensor]:
    """Compute eq. (1), L_con, of two views of a batch."""
    logits, _ = model(*views)
    return {"loss": losses.contrastive_loss(logits), **contrast_accuracy(logits)}


if __name__ == "__main__":
    cli.run(main, several=True)
