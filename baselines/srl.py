"""Supervised representation learning (Tian et al. 2020, arXiv 2003.11539): SRL-simple classifies
the base images by their labels; SRL-distill, born again, also matches SRL-simple's predictions.

python -m baselines.srl DATA --model_path SIMPLE
python -m baselines.srl DATA --model_path OUT --teacher SIMPLE
python test.py DATA --resume OUT --k_shot 5 --seed 0

What is kept is the backbone. Tian et al. normalise its features before the logistic regression;
here all methods are scored alike, on features as they are.
"""

import torch
import torch.nn.functional as F

from common.errors import require_match
from common.seeding import stream_seed
from datasets.images import require_same
from datasets.open import open_data
from moco import config, resume
from moco.checkpoint import load_checkpoint, query_encoder, student_classifier
from moco.losses import tempered_kl
from trainer import cli
from trainer.distributed import pick_device

from .common import Supervised, train


def main(argv: list[str] | None = None) -> None:
    args = config.srl_parser().parse_args(argv)
    resume.settle(args)
    base = open_data(args.data, args, use=["base"]).base
    device = pick_device(args.device, args.gpu)
    truth = torch.tensor(base.labels, device=device)
    stage = "srl_distill" if args.teacher else "srl_simple"
    teacher = None
    if args.teacher:
        checkpoint = load_checkpoint(args.teacher, ("srl_simple", "srl_distill"))
        shape = {"arch": args.arch, "image_size": args.image_size}
        require_match(shape, checkpoint["args"], args.teacher)
        require_same(checkpoint["base"], base.fingerprint(), f"{args.teacher} was trained on")
        parts = query_encoder(checkpoint), student_classifier(checkpoint)
        teacher = torch.nn.Sequential(*parts).to(device)
    torch.manual_seed(stream_seed(f"{stage} weights", args.seed))
    model = Supervised(args.arch, len(base.classes))

    def step(model, views, rows, epoch):
        logits = model(views[0])
        loss = F.cross_entropy(logits, truth[rows])
        if teacher:
            kl = tempered_kl(teacher(views[0]), logits, args.distill_t)
            loss = (1 - args.distill_weight) * loss + args.distill_weight * kl
        right = logits.argmax(dim=1) == truth[rows]
        return {"loss": loss, "accuracy": right.float().mean()}

    train(stage, args, base, model, step, device, views=1)


if __name__ == "__main__":
    cli.run(main)
