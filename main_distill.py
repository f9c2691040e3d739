"""Stage (d): distil a fresh student from the base images and their pseudo labels.

python main_distill.py DATA --savedir LABELS --model_path OUT
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import open_dataset
from datasets.images import ImageSet, check_readable
from datasets.pseudo import load_pseudo_labels
from moco import losses, options, settings
from moco.augment import stream_seed
from moco.builder import Student
from moco.checkpoint import provenance, require_match
from moco.distributed import launch
from moco.engine import contrast_accuracy, fit


def main(argv: list[str] | None = None) -> None:
    args = options.distillation_parser().parse_args(argv)
    plan = settings.launch_plan(args)
    task, labels = load_pseudo_labels(args.savedir)
    settings.inherit(args, labels.about["teacher"])
    have = {"n_way": task.n_way, "k_shot": task.k_shot}
    require_match({"n_way": args.n_way, "k_shot": args.k_shot}, have, args.savedir)
    base = open_dataset(args.data).base
    probabilities = torch.from_numpy(labels.for_images(base))
    groups = settings.batchnorm_groups(args, len(base), plan.processes)
    about = {
        "stage": "distill",
        "args": settings.recorded(args),
        "base": base.fingerprint(),
        "task": task.to_dict(),
        "pseudo_labels": labels.sha256(),
        "pseudo_labels_made_by": labels.about["made_by"],
        "made_by": provenance(),
    }
    settings.check_run(args, about)
    check_readable(base)
    launch(plan, worker, args, base, probabilities, groups, about)


def worker(
    device: torch.device, args, base: ImageSet, probabilities: Tensor, groups: int, about: dict
) -> None:
    """One process of the run. probabilities: rows of p = F(x) in the order of `base`."""
    torch.manual_seed(stream_seed("student weights", args.seed))  # not those of the young teacher
    n_way = probabilities.shape[1]
    model = Student(n_way=n_way, **settings.encoder_values(args), batchnorm_groups=groups)
    hard_labels = F.one_hot(probabilities.argmax(dim=1), n_way).float().to(device)

    def step(model, views, rows, epoch):
        contrastive_logits, class_logits = model(*views)
        y = hard_labels[rows]
        y_adpt = losses.adaptive_labels(y, class_logits, epoch, args.epochs, args.alpha)
        loss_con = losses.contrastive_loss(contrastive_logits)
        loss_cls = losses.cross_entropy(y_adpt, class_logits)
        if not args.p_label:
            loss_cls = 0 * loss_cls
        return {
            "loss": losses.distillation_loss(loss_con, loss_cls),
            "loss_con": loss_con,
            "loss_cls": loss_cls,
            "agreement": (class_logits.argmax(dim=1) == y.argmax(dim=1)).float().mean(),
            **contrast_accuracy(contrastive_logits),
        }

    fit(model, step, base, about, device=device, **settings.training_values(args))


if __name__ == "__main__":
    options.run(main)
