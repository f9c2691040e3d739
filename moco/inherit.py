"""What a student takes from its teacher: settings, and what its weights start from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError, listed, refusing

from .config import FROM_WEIGHTS, STAGES, Distillation, Labelling, Pretraining

# How a data folder is read, as the stages after labelling inherit it.
READING = ("base_classes", "rare_classes", "allow_duplicates")


def inherited_from(checkpoint: Mapping[str, Any], settings: Labelling) -> dict[str, Any]:
    """Return the settings that a student inherits from its teacher, the encoder of `checkpoint`.

    Classes and duplicates are those used for labelling, as stage (a) may have been run without. An
    encoder that was not trained here has no schedule, and is itself what its students start from.
    """
    args = checkpoint["args"]
    inherited = {name for name, field in Distillation.fields().items() if field.about.inherited}
    recorded = {name: args.get(name) for name in sorted(inherited)}
    if not STAGES[checkpoint["stage"]].trained:
        recorded["weights"] = str(settings.resume.resolve())
    return recorded | {name: getattr(settings, name) for name in READING}


def teacher_settings(recorded: Mapping[str, Any], savedir: Path) -> dict[str, Any]:
    """Return the teacher's settings `recorded` with the pseudo labels in `savedir`.

    Settings newer than the file get their defaults; a teacher that was not trained has no schedule,
    recorded as None. Raises InputError if a setting that a student must inherit is missing, or a
    value is invalid.
    """
    with refusing(f"the teacher of the pseudo labels in {savedir} is invalid"):
        required = Pretraining.names(inherited="always")
        if missing := [name for name in required if recorded.get(name) is None]:
            raise ValueError(f"missing setting {listed(missing)}")
        unknown = {name for name, value in recorded.items() if value is None}
        known = {name: recorded[name] for name in recorded.keys() - unknown}
        complete = Pretraining.complete(known)
        return {name: value for name, value in complete.items() if name not in unknown}


def student_start(
    given: Mapping[str, Any], teacher: Mapping[str, Any], about: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings `given` and those of the teacher for what a student's weights start from.

    A fresh student of a pretrained teacher takes neither the weights nor the schedule that goes
    with them. `about`: of the pseudo labels, which name the teacher's checkpoint. Raises InputError
    if the teacher began with random weights, but the settings ask for those it began with; or if
    they ask for its encoder, and that has a layer on top, or is not named.
    """
    pretrained = teacher.get("weights", "none") != "none"
    start = given.get("student_weights") or ("teacher-init" if pretrained else "fresh")
    if start == "teacher-init" and not pretrained:
        raise InputError("--student-weights teacher-init: the teacher began with random weights")
    if start == "fresh" and given.get("weights", "none") != "none":
        raise InputError(
            f"--weights {given['weights']}: a fresh student begins with random weights"
        )
    if start == "teacher":
        are_features = teacher.get("moco_dim") == 0 == given.get("moco_dim", 0)
        if not are_features or "checkpoint" not in about:
            raise InputError(
                "--student-weights teacher: the teacher's embeddings must be the features of its "
                "backbone (--moco-dim 0 in stage (a), or a frozen encoder), and the student's too"
            )
        if given.get("weights", about["checkpoint"]) != about["checkpoint"]:
            raise InputError(
                f"--weights {given['weights']} conflicts with --student-weights teacher, which are "
                f"those of {about['checkpoint']}"
            )
        given = {"weights": about["checkpoint"], **given}
    dropped = ("weights", *FROM_WEIGHTS) if pretrained and start == "fresh" else ()
    kept = {name: value for name, value in teacher.items() if name not in dropped}
    return {**given, "student_weights": start}, kept


def classifier_start(
    given: Mapping[str, Any], teacher: Mapping[str, Any], about: Mapping[str, Any], known: bool
) -> dict[str, Any]:
    """Return the settings `given` and those of the teacher with what f_c′ starts from.

    It can start as f_c if the student's embeddings start as the teacher's, without a layer on top:
    those of its encoder, or of what it began with if it was not trained here, as `about`, of the
    pseudo labels, says; and if f_c is `known` from their file. Raises InputError if it is asked for
    otherwise.
    """
    weights = given["student_weights"]
    same = weights == "teacher" or (weights == "teacher-init" and about.get("epoch") == 0)
    same = same and given.get("moco_dim", teacher.get("moco_dim")) == 0
    same = same and about["args"].get("norm_statistics", "running") == "running"
    start = given.get("student_classifier") or ("teacher" if same and known else "fresh")
    if start == "teacher" and not same:
        raise InputError(
            "--student-classifier teacher: the student does not begin with its teacher's very "
            "encoder; that takes a frozen pretrained teacher (baselines.pretrained) or "
            "--student-weights teacher, --moco-dim 0, and labels by running BatchNorm statistics"
        )
    if start == "teacher" and not known:
        raise InputError(
            "--student-classifier teacher: the pseudo labels are without the teacher's classifier; "
            "make them again by generate_pseudo.py, without --normalize"
        )
    return {**given, "student_classifier": start}
