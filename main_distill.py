"""Stage (d): distil a fresh student from the base images and their pseudo labels.

python main_distill.py DATA --savedir LABELS --model_path OUT
"""

import torch
import torch.nn.functional as F

from common.errors import InputError, require_match
from common.seeding import stream_seed
from datasets.images import ImageSet
from datasets.open import decoded, open_data
from datasets.pseudo import PseudoLabels, load_pseudo_labels
from moco import config, losses, resume
from moco.builder import Student
from moco.distill import class_correction, distillation_step
from trainer import cli
from trainer.launch import launch
from trainer.provenance import provenance
from trainer.trainer import fit


def main(argv: list[str] | None = None) -> None:
    args = config.distillation_parser().parse_args(argv)
    plan = config.launch_plan(args)
    if args.dic_gamma * args.dic_scale > 1:
        raise InputError(
            f"--dic-gamma {args.dic_gamma} times --dic-scale {args.dic_scale} is more than 1: "
            "temperatures could fall below 0"
        )
    task, labels = load_pseudo_labels(args.savedir)
    resume.inherit(args, labels.about["teacher"])
    resume.settle(args)
    have = {"n_way": task.n_way, "k_shot": task.k_shot}
    require_match({"n_way": args.n_way, "k_shot": args.k_shot}, have, args.savedir)
    base = open_data(args.data, args, use=["base"]).base
    labels = labels.for_images(base)
    groups = resume.batchnorm_groups(args, len(base), plan.processes)
    about = {
        "stage": "distill",
        "args": config.recorded(args),
        "base": base.fingerprint(),
        "task": task.to_dict(),
        "pseudo_labels": labels.sha256(),
        "pseudo_labels_made_by": labels.about["made_by"],
        "made_by": provenance(),
    }
    resume.check_run(args, about)
    base = decoded(args, base, args.image_size)
    launch(plan, worker, args, base, labels, groups, about)


def worker(
    device: torch.device, args, base: ImageSet, labels: PseudoLabels, groups: int, about: dict
) -> None:
    """One process of the run. `labels`: the teacher's, in the order of `base`."""
    torch.manual_seed(stream_seed("student weights", args.seed))  # not those of the young teacher
    classes = about["task"]["classes"]
    n_way = len(classes)
    student = Student(n_way=n_way, **config.encoder_values(args), batchnorm_groups=groups)
    hard_labels = torch.from_numpy(labels.hard())
    soft_labels = torch.from_numpy(labels.probabilities)
    if args.correction == "ddl":
        counts = hard_labels.bincount(minlength=n_way).float()
        student.class_temperatures.copy_(
            losses.class_temperatures(counts, args.dic_gamma, args.dic_scale)
        )
    y = F.one_hot(hard_labels, n_way).float() if "hard" in args.pseudo_label else soft_labels
    step = distillation_step(args, student, y.to(device), labels.embeddings)
    training = resume.training_values(args, base, device)
    correct = class_correction(args, student, base, hard_labels, classes, device)
    fit(student, step, base, about, device=device, before_epoch=correct, **training)


if __name__ == "__main__":
    cli.run(main, several=True)
