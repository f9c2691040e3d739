"""Stage (d): distil a fresh student from the base images and their pseudo labels.

python main_distill.py DATA --savedir LABELS --model_path OUT
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import require_match
from common.seeding import stream_seed
from datasets.images import ImageSet
from datasets.pseudo import PseudoLabels, load_pseudo_labels
from moco import losses, options, settings
from moco.builder import Student
from moco.engine import Step, contrast_accuracy, fit
from moco.evaluate import encode
from trainer import cli
from trainer.distributed import broadcast, is_main
from trainer.launch import launch
from trainer.provenance import provenance


def main(argv: list[str] | None = None) -> None:
    args = options.distillation_parser().parse_args(argv)
    plan = settings.launch_plan(args)
    task, labels = load_pseudo_labels(args.savedir)
    settings.inherit(args, labels.about["teacher"])
    settings.settle(args)
    have = {"n_way": task.n_way, "k_shot": task.k_shot}
    require_match({"n_way": args.n_way, "k_shot": args.k_shot}, have, args.savedir)
    base = settings.open_data(args.data, args, use=["base"]).base
    labels = labels.for_images(base)
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
    base = settings.decoded(args, base, args.image_size)
    launch(plan, worker, args, base, labels, groups, about)


def worker(
    device: torch.device, args, base: ImageSet, labels: PseudoLabels, groups: int, about: dict
) -> None:
    """One process of the run. `labels`: the teacher's, in the order of `base`."""
    torch.manual_seed(stream_seed("student weights", args.seed))  # not those of the young teacher
    classes = about["task"]["classes"]
    n_way = len(classes)
    student = Student(n_way=n_way, **settings.encoder_values(args), batchnorm_groups=groups)
    hard_labels = torch.from_numpy(labels.hard())
    soft_labels = torch.from_numpy(labels.probabilities)
    if args.correction == "ddl":
        counts = hard_labels.bincount(minlength=n_way).float()
        student.class_temperatures.copy_(losses.class_temperatures(counts, args.dic_gamma))
    y = F.one_hot(hard_labels, n_way).float() if "hard" in args.pseudo_label else soft_labels
    step = distillation_step(args, student, y.to(device), labels.embeddings)
    training = settings.training_values(args)

    def correct(epoch: int, begun: bool) -> dict[str, float]:
        """Before an epoch: DIC's temperatures anew where they are due (and were not measured when
        this epoch began); those in force, to log."""
        if args.correction == "none":
            return {}
        due = epoch and epoch % args.dic_interval == 0 and not begun
        if args.correction == "dic" and due:
            if is_main():
                embeddings = encode(
                    student.query_encoder,
                    base,
                    args.image_size,
                    workers=training["workers"],
                    device=device,
                )
                v = losses.dispersions(
                    torch.from_numpy(embeddings), hard_labels, n_way, args.dic_dispersion
                )
                student.class_temperatures.copy_(losses.class_temperatures(v, args.dic_gamma))
            broadcast(student.class_temperatures)
        values = student.class_temperatures.tolist()
        return {f"temperature_{name}": value for name, value in zip(classes, values)}

    fit(student, step, base, about, device=device, before_epoch=correct, **training)


def distillation_step(args, student: Student, y: Tensor, teacher_embeddings: np.ndarray) -> Step:
    """What a batch costs the `student`, eq. (2). y: M×N pseudo labels, on the device of training;
    `teacher_embeddings`: M×D."""
    of_teacher = torch.from_numpy(teacher_embeddings).to(y.device)

    def step(model, views, rows, epoch):
        contrastive_logits, embeddings, class_logits = model(*views)
        loss_cls = losses.classification_loss(
            y[rows], class_logits, student.class_temperatures, epoch, args.epochs, args.alpha,
            args.pseudo_label, args.cls_loss,
        )  # fmt: skip
        parts = {
            "con": losses.contrastive_loss(contrastive_logits),
            "cls": loss_cls,
            "reg": losses.regression(of_teacher[rows], embeddings),
        }
        agreed = class_logits.argmax(dim=1) == y[rows].argmax(dim=1)
        return {
            "loss": losses.distillation_loss(parts, args.losses if args.p_label else "con"),
            **{f"loss_{name}": part for name, part in parts.items()},
            "agreement": agreed.float().mean(),
            **contrast_accuracy(contrastive_logits),
        }

    return step


if __name__ == "__main__":
    cli.run(main, several=True)
