"""Stage (d): distil a fresh student from the base images and their pseudo labels.

python main_distill.py DATA --savedir LABELS --model-path OUT
"""

import common.startup  # noqa: F401

import torch
import torch.nn.functional as F

import baselines
from common.errors import InputError
from common.seeding import stream_seed
from datasets.images import ImageSet
from datasets.pseudo import PseudoLabels, load_pseudo_labels
from moco import resume
from moco.builder import Student
from moco.checkpoint import load_teacher
from moco.config import Distillation
from moco.distill import align, class_correction, distillation_step, require_read
from moco.inherit import classifier_start, student_start, teacher_settings
from moco.train import train
from moco.weights import require_teachers_start, weights_record
from trainer import cli
from trainer.flags import parse
from trainer.launch import launch
from trainer.launch_plan import plan_of
from trainer.trainer import Run

baselines.register_all()  # here, so that the processes which it spawns do so, too


def main(argv: list[str] | None = None) -> None:
    given = parse(Distillation, argv)
    savedir = given["savedir"]
    task, labels = load_pseudo_labels(savedir)
    teacher = teacher_settings(labels.about["teacher"], savedir)
    given, teacher = student_start(given, teacher, labels.about)
    given = classifier_start(given, teacher, labels.about, labels.classifier is not None)
    settings, source = resume.resolve_training(Distillation, given, teacher, savedir)
    if source is None:
        require_read(settings, given)
    plan = plan_of(settings)
    if settings.correction != "none" and settings.dic_gamma * settings.dic_scale >= 1:
        raise InputError(
            f"--dic-gamma {settings.dic_gamma} times --dic-scale {settings.dic_scale} must be less "
            "than 1, or class temperatures could be 0 or negative"
        )
    settings.require_match({"n_way": task.n_way, "k_shot": task.k_shot}, savedir)
    data = settings.open_data(use=["base"], show=plan.first_rank == 0)
    task.require_classes(data.rare)
    labels = labels.for_images(data.base)
    groups = resume.batchnorm_groups(settings, len(data.base), plan.world_size)
    weights = weights_record(settings, source)
    if settings.student_weights != "teacher":
        require_teachers_start(weights, labels.about.get("weights"), savedir)
    elif source is None:  # a student that continues needs its teacher's encoder no more
        load_teacher(labels.teacher())
    run, base = resume.prepare_run(
        "distill", settings, source, data, data.base,
        task=task.to_dict(),
        weights=weights,
        pseudo_labels=labels.sha256(),
        pseudo_labels_made_by=labels.about["made_by"],
        teacher=labels.teacher(),
    )  # fmt: skip
    if plan.first_rank == 0 and labels.about.get("contents") not in (None, run.about["contents"]):
        print(
            f"note: base images have changed since {savedir} was made: their pseudo labels are of "
            "the images before; rerun generate_pseudo.py with --overwrite to label them again"
        )
    launch(plan, worker, settings, base, labels, groups, run)


def worker(
    device: torch.device,
    settings: Distillation,
    base: ImageSet,
    labels: PseudoLabels,
    groups: int,
    run: Run,
) -> None:
    """Train on one rank. `labels`: the teacher's pseudo labels, in the order of `base`."""
    # A seed stream other than stage (a)'s: a fresh initialisation of what --weights does not load.
    torch.manual_seed(stream_seed("student weights", settings.seed))
    classes = run.about["task"]["classes"]
    pair = settings.encoder_pair()
    student = Student(n_way=len(classes), **pair, batchnorm_groups=groups)
    soft_labels = torch.from_numpy(labels.probabilities)
    if settings.pseudo_balance == "align":
        soft_labels = align(soft_labels)
    hard_labels = soft_labels.argmax(dim=1)
    one_hot = F.one_hot(hard_labels, len(classes)).float()
    y = one_hot if "hard" in settings.pseudo_label else soft_labels
    if settings.student_classifier == "teacher":
        student.classifier.load(torch.from_numpy(labels.classifier))
    step = distillation_step(settings, student, y.to(device), labels.embeddings)
    after_epoch = class_correction(settings, student, base, hard_labels, classes, device)
    train(student, step, base, settings, run, device, after_epoch=after_epoch)


if __name__ == "__main__":
    cli.run(main, several=True)
