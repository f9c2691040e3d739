"""What all ways to test a checkpoint share: its task, what classifies images, the result files."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError, listed, refusing
from common.files import parse_json, require_writable, write_utf8
from datasets import Collection
from datasets.episode import TASK_FILE, Task, load_task
from datasets.images import ImageSet, other_images
from datasets.open import choose, draw
from datasets.pseudo import PSEUDO_FILE, load_pseudo_labels
from moco.checkpoint import student_classifier
from moco.config import STAGES, Testing
from moco.evaluate import FrozenEncoder, Predictor, direct, regressions
from moco.inherit import READING
from moco.meta import MetaLearner, adaptations
from moco.outputs import about_output, already_done
from moco.scores import score
from trainer.distributed import readers

CLASSIFIERS = {
    "lr": "logistic regression on the support set",
    "direct": "the student's own classifier",
    "adapted": "the meta-trained model, adapted to the support set",
}


@dataclass(frozen=True)
class Evaluation:
    """A run of test.py: its settings, those of them that were `given`, and the checkpoint."""

    settings: Testing
    given: dict[str, Any]
    checkpoint: dict[str, Any]
    device: torch.device

    @property
    def adapts(self) -> bool:
        """Whether the model was meta-trained, and so adapts to a task by itself."""
        return STAGES[self.checkpoint["stage"]].adapts is not None

    @property
    def classifier(self) -> str:
        """What classifies the images, as files and messages name it."""
        if self.adapts:
            return "adapted"
        return "direct" if self.settings.load_cla else "lr"

    def described(self, task: Task) -> dict[str, str]:
        """Return in words what predicts images of `task`, for readers of a page of them."""
        checkpoint, settings = self.checkpoint, self.settings
        how = CLASSIFIERS[self.classifier]
        how += ", on L2-normalised embeddings" * (self.classifier == "lr" and settings.normalize)
        how += ", calibrated by a temperature" * (settings.temperature == "cv")
        stage, arch = STAGES[checkpoint["stage"]].title, checkpoint["args"]["arch"]
        epochs = f", {n} epochs" if (n := checkpoint["epoch"]) else ""
        return {
            "classes": listed(task.classes, len(task.classes)),
            "classifier": how,
            "task": str(task),
            "encoder": f"{stage}, {arch}{epochs}, {self.folder.resolve().name}",
            "date": f"{datetime.date.today()}",
        }

    @property
    def image_size(self) -> int:
        return self.checkpoint["args"]["image_size"]

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        path = self.settings.resume
        return path if path.is_dir() else path.parent

    def paths(self, name: str) -> tuple[Path, Path]:
        """Return the paths of the JSON and the CSV file called `name`."""
        folder = self.settings.output or self.folder
        return folder / f"{name}.json", folder / f"{name}.csv"

    def encoder(self) -> FrozenEncoder | MetaLearner:
        """Return the frozen encoder of the checkpoint, or its meta-trained model."""
        return (MetaLearner if self.adapts else FrozenEncoder)(self.checkpoint, *self.options)

    @property
    def options(self) -> tuple:
        """How a `FrozenEncoder` is to run: device, amp, batch size, data-loading processes,
        statistics of BatchNorm."""
        settings = self.settings
        workers = readers(settings.workers)
        return self.device, settings.amp, settings.batch_size, workers, settings.norm_statistics

    def predictor(
        self,
        encoder: FrozenEncoder | MetaLearner,
        support: ImageSet | None,
        query: ImageSet,
    ) -> Predictor:
        """Encode the images of one task or many; return what classifies a task's query set.

        By the student's classifier, or with `support`, the support images of all tasks, by a
        logistic regression fitted on those of the task, or by the meta-trained model adapted to
        them.
        """
        settings = self.settings
        if isinstance(encoder, MetaLearner):
            if settings.tasks:  # all of them are of the images `query`
                return adaptations(encoder, query)
            return lambda support, query: (encoder.predict(query, support, "testing"), {})
        if support is None:
            return direct(encoder, student_classifier(self.checkpoint), query)
        calibrate = settings.temperature == "cv"
        return regressions(encoder, support, query, settings.augnum, settings.normalize, calibrate)

    def about(self) -> dict[str, Any]:
        """Return what the JSON file tells about the command and the checkpoint; of its training,
        stage and fixed settings, equal for all seeds of an experiment."""
        stage, args = self.checkpoint["stage"], self.checkpoint["args"]
        fixed = set(STAGES[stage].settings.names(fixed=True)) - {"seed", "teacher"}
        training = {"stage": stage, **{name: args[name] for name in args if name in fixed}}
        return {**about_output(self.settings, self.checkpoint), "training": training}

    def earlier(self, files: tuple[Path, Path]) -> dict | None:
        """Return an earlier JSON file; None if there is none, or --overwrite replaces it.

        Raises InputError if it is invalid, or the files cannot be written.
        """
        file = files[0]  # a CSV file alone: unfinished run
        if self.settings.overwrite or not file.exists():
            try:
                require_writable(file.parent)
            except InputError as error:
                raise InputError(f"{error}; choose another folder with --output") from None
            return None
        with refusing(f"{file} is invalid; replace it with --overwrite"):
            previous = parse_json(file.read_bytes(), newest=0)
            if "task" in previous:
                Task.from_dict(previous["task"])
            return previous

    def is_done(self, files: tuple[Path, Path], previous: dict, others: list[str]) -> bool:
        """Return whether the `earlier` result is of this command, see `already_done`, and whole."""
        done = already_done(files, previous, self.settings, self.given, self.checkpoint, others)
        if done and not files[1].exists():
            print(f"note: {files[1]} is missing; it is made again")
        return done and files[1].exists()

    def find_task(self, data: Collection | None) -> Task:
        """Return the checkpoint's task, else that in --savedir, else one drawn with --seed.

        Or the one that --support chooses. Raises InputError if it conflicts with the settings or
        the classifier.
        """
        settings, recorded = self.settings, self.checkpoint["task"]
        chosen = None
        if settings.support:
            if data is None or settings.savedir:
                raise InputError("--support needs the data folder, and no --savedir")
            chosen = choose(data, settings.support, settings.group_disjoint)
        if recorded or settings.savedir:
            task, where = self.recorded_task(chosen)
        elif chosen:
            task, where = chosen, settings.support
        elif settings.load_cla:
            raise InputError(
                f"{settings.resume} does not contain its task; pass the folder of its "
                f"{TASK_FILE} as --savedir"
            )
        else:
            assert data is not None
            return self.drawn(data, settings.seed or 0)
        if settings.load_cla:
            n_way = student_classifier(self.checkpoint).linear.out_features
            if n_way != task.n_way:
                raise InputError(
                    f"{settings.resume} classifies {n_way} classes, but {where} has {task.n_way}"
                )
        return task

    def recorded_task(self, chosen: Task | None) -> tuple[Task, Path]:
        """Return the task that the checkpoint or --savedir has, and which of them.

        Raises InputError if they have different ones, or the settings ask for another one; `chosen`
        is that of --support.
        """
        settings, recorded = self.settings, self.checkpoint["task"]
        task = Task.from_dict(recorded) if recorded else load_task(settings.savedir)
        where = settings.resume if recorded else settings.savedir
        if recorded and settings.savedir and load_task(settings.savedir) != task:
            raise InputError(
                f"{where} was trained for another task than that in {settings.savedir}"
            )
        if chosen and not chosen.same_support(task):
            raise InputError(
                f"{where} was trained for another task, {task}, than that of --support "
                f"{settings.support}"
            )
        if settings.group_disjoint or settings.rare_split:
            raise InputError(
                f"--group-disjoint and --rare-split apply to drawing a task, but {where} has one; "
                "pass them to generate_pseudo.py"
            )
        drawn = {"n_way": task.n_way, "k_shot": task.k_shot, "seed": task.seed}
        settings.require_match(drawn, where)
        return task, where

    def drawn(self, data: Collection, seed: int) -> Task:
        """Return the task that the settings draw with a seed. Raises InputError as `draw` does."""
        settings = self.settings
        return draw(
            data, settings.n_way, settings.k_shot or 5, seed, settings.group_disjoint,
            settings.rare_split,
        )  # fmt: skip


def reading_of_task(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how generate_pseudo.py read the data folder whose task is in --savedir: its classes,
    and whether copies count. Nothing that is given, or if the folder has no pseudo labels."""
    savedir = given.get("savedir")
    if not savedir or not (savedir / PSEUDO_FILE).is_file():
        return {}
    recorded = load_pseudo_labels(savedir)[1].about["teacher"]
    names = [name for name in READING if name not in given and recorded.get(name) is not None]
    return {name: recorded[name] for name in names}


def write_results(files: tuple[Path, Path], scores: dict, table: str, overwrite: bool) -> None:
    """Write the JSON file of the scores and the CSV file `table`. Until both are written the
    earlier JSON file stays, without which the rows of the CSV file would not count."""
    if overwrite:
        files[0].unlink(missing_ok=True)  # an interrupted --overwrite must not look done
    write_utf8(files[1], table)
    write_utf8(files[0], json.dumps(scores, indent=1))
    print(f"written: {files[0]}, {files[1]}")


def score_of(images: ImageSet, probabilities: np.ndarray) -> dict:
    """Return the scores of the probabilities, M×N, of M images."""
    predicted = probabilities.argmax(axis=1)
    return score(np.array(images.labels), predicted, images.classes, probabilities)


def another_task(previous: dict, task: Task) -> list[str]:
    """Return what differs, for a message, if an earlier result is of another task."""
    recorded = previous.get("task")
    return ["another task"] * (not recorded or Task.from_dict(recorded) != task)


def note_on_source(task: Task, rare: ImageSet) -> None:
    """Print a note if the task was drawn from other rare images."""
    if other := other_images(task.rare, rare):
        print(f"note: the task was drawn from {other}")


def group_word(shared: dict) -> str:
    """Return what the scores say about the groups of `Task.shared`."""
    if shared["groups"] == 0 and shared["without_group"]:
        return "; groups known in part"
    return {None: "; groups unknown", 0: " or its groups"}.get(shared["groups"], "")
