"""Training from scratch: backbone and classifier on the support set alone; and, with --oracle,
Table 11's upper bound, on 70 % of all rare images.

python -m baselines.scratch DATA --model_path OUT --k_shot 5 --seed 0
python test.py DATA --resume OUT --load_cla
"""

import torch
import torch.nn.functional as F

from common.seeding import stream_seed
from datasets.open import draw, open_data
from moco import config, resume
from trainer import cli
from trainer.distributed import pick_device

from .common import Supervised, train


def main(argv: list[str] | None = None) -> None:
    args = config.scratch_parser().parse_args(argv)
    resume.settle(args)
    rare = open_data(args.data, args, use=["rare"]).rare
    if args.oracle:
        args.k_shot, args.rare_split = None, True
    task = draw(args.data, args, rare, args.k_shot)
    support = task.support(rare)
    args.batch_size = min(args.batch_size, len(support))
    device = pick_device(args.device, args.gpu)
    truth = torch.tensor(support.labels, device=device)
    torch.manual_seed(stream_seed("scratch weights", args.seed))
    model = Supervised(args.arch, task.n_way)

    def step(model, views, rows, epoch):
        logits = model(views[0])
        right = logits.argmax(dim=1) == truth[rows]
        return {"loss": F.cross_entropy(logits, truth[rows]), "accuracy": right.float().mean()}

    train("scratch", args, support, model, step, device, views=1, task=task)


if __name__ == "__main__":
    cli.run(main)
