"""A student's scores beside its teacher's, on the same query set."""

from common.errors import InputError
from datasets.images import ImageSet
from moco.checkpoint import load_teacher, no_classifier, student_classifier
from moco.evaluate import FrozenEncoder, direct, regressions
from moco.scores import aligned

from .run import Evaluation, score_of

TEACHER = "teacher, logistic regression"
TITLES = {
    "accuracy": "accuracy", "average": "mean of classes", "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
}  # fmt: skip
STUDENT_DIRECT, STUDENT_LR = "student, its own classifier", "student, logistic regression"


def beside(
    run: Evaluation, encoder: FrozenEncoder, support: ImageSet, query: ImageSet
) -> dict[str, dict | None]:
    """Return the scores of a student and its teacher, None if `teacher_of` is, on the same query
    set."""
    student = run.checkpoint
    found: dict[str, dict | None] = {TEACHER: None}
    if teacher := teacher_of(student):
        *options, statistics = run.options
        fitted = student["teacher"]
        if fitted.get("norm_statistics") == "image":
            statistics = "image"  # as it labelled
        f_q = FrozenEncoder(teacher, *options, statistics)
        predict = regressions(f_q, support, query, fitted["augnum"], fitted["normalize"])
        found[TEACHER] = score_of(query, predict(support, query)[0])
    if no_classifier(student) is None:
        predict = direct(encoder, student_classifier(student), query)
        found[STUDENT_DIRECT] = score_of(query, predict(None, query)[0])
    predict = run.predictor(encoder, support, query)
    found[STUDENT_LR] = score_of(query, predict(support, query)[0])
    return found


def teacher_of(student: dict) -> dict | None:
    """Return the checkpoint of a student's teacher; None, with a note, if it is not recorded, not
    there or has been trained on."""
    try:
        if student.get("teacher") is None:
            raise InputError("the student does not record its teacher")
        return load_teacher(student["teacher"])
    except InputError as error:
        print(f"note: the teacher's score is not at hand: {error}")
        return None


def is_complete(found: dict[str, dict | None] | None, student: dict) -> bool:
    """Return whether there are earlier scores of `beside`, with the teacher's if it is at hand."""
    return bool(found and (found[TEACHER] or not teacher_of(student)))


def print_beside(found: dict[str, dict | None], classifier: str) -> None:
    """Print the scores of `beside`, and a note if the student, by the `classifier` that was scored
    ("direct" or "lr"), is worse than its teacher."""
    rows = [["", *TITLES.values()]]
    for name, scores in found.items():
        rows.append([name, *(f"{scores[key]:.1%}" if scores else "–" for key in TITLES)])
    print(f"\n{aligned(rows)}")
    scored = STUDENT_DIRECT if classifier == "direct" else STUDENT_LR
    teacher, student = found[TEACHER], found[scored]
    if teacher and student and student["accuracy"] < teacher["accuracy"]:
        both = f"{student['accuracy']:.1%} against {teacher['accuracy']:.1%}"
        how = scored.replace(",", " by")
        print(f"note: the {how} is worse than its teacher: {both}")
