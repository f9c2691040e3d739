"""Which flags of test.py contradict each other or the checkpoint."""

from common.errors import InputError, listed
from common.files import require_writable
from moco.checkpoint import no_classifier
from moco.config import Testing, require_undrawn

from .many_tasks import require_many
from .run import Evaluation


def require_consistent(run: Evaluation) -> None:
    """Raise InputError if the flags contradict each other or the checkpoint."""
    settings = run.settings
    if settings.support:
        require_undrawn(run.given)
    if settings.tasks:
        require_many(run)
    elif settings.compare:
        raise InputError("--compare requires --tasks")
    of_predict = [name for name in ("sheet", "none_level", "none_of_these") if name in run.given]
    if of_predict and not settings.predict:
        flags = [Testing.fields()[name].flag for name in of_predict]
        raise InputError(f"{listed(flags)}: only with --predict")
    if settings.sheet:
        if settings.sheet.is_dir():
            raise InputError(f"--sheet {settings.sheet} is a folder; name a file in it, FILE.html")
        require_writable(settings.sheet.parent)
    if settings.load_cla and run.adapts:
        raise InputError(
            f"--load-cla: {settings.resume} has no trained classifier; it adapts to the support "
            "set by itself"
        )
    if settings.load_cla and (reason := no_classifier(run.checkpoint)):
        raise InputError(f"--load-cla: {settings.resume} ({reason}) has no trained classifier")
    if settings.temperature == "cv" and run.classifier != "lr":
        raise InputError(
            "--temperature cv fits a logistic regression on parts of the support set; this "
            f"classifier is another: {run.classifier}"
        )
    of_regression = [name for name in ("augnum", "normalize") if name in run.given]
    if run.adapts and of_regression:
        flags = [Testing.fields()[name].flag for name in of_regression]
        raise InputError(
            f"{listed(flags)}: no effect, as {settings.resume} adapts to tasks by itself"
        )
    if settings.norm_statistics == "image" and (settings.predict or run.adapts):
        raise InputError("--norm-statistics image is for scoring an encoder or a student")
    if settings.data is None and not (settings.predict and settings.load_cla):
        raise InputError("missing data folder; only --predict with --load-cla works without it")
