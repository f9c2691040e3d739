"""The jobs behind a table of the papers: one for each encoder, labelling, student and score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.pseudo import PSEUDO_FILE
from moco.checkpoint import load_checkpoint
from trainer.checkpoint import CHECKPOINT

from .study import ENCODERS, META, ON_SUPPORT, STUDENTS, Study


@dataclass(frozen=True)
class Job:
    """A command that resumes when rerun.

    It is done when `folder` has a file matching `output`, a checkpoint of `epochs` epochs if these
    are given.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    output: str
    needs: tuple[str, ...] = ()
    epochs: int | None = None

    def done(self) -> bool:
        exists = any(self.folder.glob(self.output))
        if exists and self.epochs is not None:
            return load_checkpoint(self.folder)["epoch"] >= self.epochs
        return exists


def jobs_of(study: Study) -> list[Job]:
    """Return the jobs of all cells, without duplicates, each after the jobs it needs."""
    planner = Planner(study)
    for cell in study.cells():
        planner.score(*cell)
    for row in study.many():
        planner.many(*row)
    return list(planner.jobs.values())


class Planner:
    """Collects the jobs of a study by name. Each method adds a job, after those that it needs,
    unless it is there, and returns it."""

    def __init__(self, study: Study):
        self.study, self.root = study, study.root
        self.jobs: dict[str, Job] = {}

    def add(
        self, name: str, command: Sequence[object], folder: Path, output: str = CHECKPOINT,
        needs: Sequence[Job] = (),
    ) -> Job:  # fmt: skip
        """Add the job `name`; one that writes a checkpoint is a training."""
        duplicates = ["--allow-duplicates"] * self.study.allow_duplicates
        words = (*map(str, command), *duplicates, *self.study.machine)
        epochs = self.study.epochs if output == CHECKPOINT else None
        job = Job(name, words, folder, output, tuple(need.name for need in needs), epochs)
        return self.jobs.setdefault(name, job)

    def train(
        self, name: str, folder: Path, script: Sequence[object], flags: Sequence[object],
        needs: Sequence[Job] = (),
    ) -> Job:  # fmt: skip
        """Add a training by `script`, with its own flags, on the data folder."""
        first = 2 if script[0] == "-m" else 1
        command = [*script[:first], self.study.data, "--model-path", folder, *script[first:]]
        command += [*self.study.training_flags("--cos" in script), *flags]
        return self.add(name, command, folder, needs=needs)

    def encoder(self, name: str) -> Job:
        script, needs = ENCODERS[name], []
        if name == "srl_distill":
            needs = [self.encoder("srl_simple")]
            script = (*script, "--teacher", needs[0].folder)
        flags = ["--seed", 0, *self.study.classes]
        return self.train(f"encoder {name}", self.root / "encoders" / name, script, flags, needs)

    def meta(self, name: str, shot: str) -> Job:
        words = META[name]
        label = f"{name} {shot}shot" if "{shot}" in words else name
        needs = {name: self.encoder(name) for name in ENCODERS if f"{{{name}}}" in words}
        values = {encoder: job.folder for encoder, job in needs.items()}
        values |= {"shot": shot, "n_way": self.study.table.n_way}
        script = ["-m", f"baselines.{name}", *(word.format(**values) for word in words)]
        folder = self.root / "meta" / label.replace(" ", "_")
        flags = ["--seed", 0, *self.study.classes]
        return self.train(f"meta {label}", folder, script, flags, list(needs.values()))

    def on_support(self, name: str, shot: str, seed: int) -> Job:
        task = self.study.task_name(shot, seed)
        # The oracle has no shots: it trains on all training images of the split.
        flags = self.study.task_flags(None if name == "oracle" else shot, seed)
        folder = self.root / "on_support" / name / task
        return self.train(f"{name} {task}", folder, ON_SUPPORT[name], flags)

    def labels(self, shot: str, seed: int) -> Job:
        task, teacher = self.study.task_name(shot, seed), self.encoder("moco_v1")
        folder = self.root / "labels" / task
        command = ["generate_pseudo.py", "--datadir", self.study.data, "--resume", teacher.folder]
        command += ["--savedir", folder, *self.study.task_flags(shot, seed)]
        command += ["--overwrite", "--no-amp"]
        return self.add(f"labels {task}", command, folder, PSEUDO_FILE, [teacher])

    def student(self, name: str, shot: str, seed: int) -> Job:
        task, labels = self.study.task_name(shot, seed), self.labels(shot, seed)
        folder = self.root / "students" / name / task
        command = ["main_distill.py", self.study.data, "--savedir", labels.folder]
        command += ["--model-path", folder, *STUDENTS[name], "--seed", seed]
        return self.add(f"student {name} {task}", command, folder, needs=[labels])

    def score(self, method: str, shot: str, seed: int) -> Job:
        study, (model, classifier) = self.study, self.study.model_of(method)
        flags: list[object] = [*study.grouping]  # the model has a task
        if model in ENCODERS or model in META:
            training, flags = self.of_all_tasks(model, shot), study.task_flags(shot, seed)
        elif model in STUDENTS:
            training = self.student(model, shot, seed)
        else:
            training = self.on_support(model, shot, seed)
        flags += ["--load-cla"] * (classifier == "direct")
        flags += ["--no-teacher"] * (model in STUDENTS)  # it has rows of its own
        name = f"score {model} {study.task_name(shot, seed)} {classifier}"
        folder = study.score_folder(method, shot, seed)
        return self.test(name, model, training, flags, folder / "test_*.json")

    def many(self, method: str, shot: str) -> Job:
        model, classifier = self.study.model_of(method)
        flags = [*self.study.task_flags(shot), "--tasks", self.study.tasks]
        name = f"tasks {model} {self.study.task_name(shot)} {classifier}"
        training = self.of_all_tasks(model, shot)
        return self.test(name, model, training, flags, self.study.many_file(method, shot))

    def of_all_tasks(self, model: str, shot: str) -> Job:
        return self.meta(model, shot) if model in META else self.encoder(model)

    def test(
        self, name: str, model: str, training: Job, flags: Sequence[object], file: Path
    ) -> Job:  # fmt: skip
        """Add the scoring of a model by its training, which writes `file`."""
        command = ["test.py", self.study.data, "--resume", training.folder, *flags]
        command += ["--norm-statistics", "image"] * self.study.scored_by_image(model)
        command += ["--output", file.parent, "--overwrite"]
        # In float32; but a meta-trained model adapts as it trained.
        command += ["--amp" if self.study.amp and model in META else "--no-amp"]
        return self.add(name, command, file.parent, file.name, [training])
