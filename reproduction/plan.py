"""The jobs behind a table of the papers: one for each encoder, labelling, student and score."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.pseudo import PSEUDO_FILE
from moco.checkpoint import load_checkpoint
from moco.config import Distillation
from trainer.checkpoint import CHECKPOINT
from trainer.config import scaled_drops

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper_tables.csv"
SEEDS = (0, 1, 2)
DIC_INTERVAL = Distillation.fields()["dic_interval"].default
TASKS = 600  # over which rows that need no training by task have an interval
IMAGES = {"isic2018": 10_015, "papsmear": 917, "oct": 85_154}  # base and rare, as in the papers
BASE_IMAGES = {"isic2018": 9_431, "papsmear": 675, "oct": 85_154}  # OCT: at most

# Trained once, on the base images.
ENCODERS = {
    "moco_v1": ("main_moco.py",),
    "moco_v2": ("main_moco.py", "--mlp", "--aug-plus", "--cos", "--moco-t", "0.2"),
    "simclr": ("-m", "baselines.simclr"),
    "srl_simple": ("-m", "baselines.srl"),
    "srl_distill": ("-m", "baselines.srl"),  # with srl_simple as its teacher
}
# Meta-trained on the base images, with these flags, and adapted to each task by test.py; with
# {shot} once for each number of shots, otherwise once. {NAME} is the checkpoint of an encoder.
WAYS, SHOTS = ("--n-way", "{n_way}"), ("--k-shot", "{shot}")
META = {
    "maml": (*WAYS, *SHOTS),
    "daml": (*WAYS, *SHOTS),
    "relationnet": SHOTS,
    "protonet": SHOTS,
    "umtra": WAYS,
    "cactus_maml": (*WAYS, "--encoder", "{moco_v1}"),
    "cactus_protonet": ("--encoder", "{moco_v1}"),
}
# Distilled for each task from moco_v1's pseudo labels; Table 9 compares the labels of DIC.
STUDENTS = {
    "hybrid": (),
    "hybrid_ddl": ("--correction", "ddl"),
    "hybrid_dic": ("--correction", "dic"),
    "cls_only": ("--losses", "cls"),
    "con_reg": ("--losses", "con+reg"),
    "dic_adaptive_soft": ("--correction", "dic", "--pseudo-label", "adaptive-soft"),
    "dic_hard": ("--correction", "dic", "--pseudo-label", "hard"),
    "dic_soft": ("--correction", "dic", "--pseudo-label", "soft"),
}
# Trained on the support set of each task.
ON_SUPPORT = {
    "scratch": ("-m", "baselines.scratch"),
    "oracle": ("-m", "baselines.scratch", "--oracle"),
}
# Rows of the tables: a model of the above and the classifier that scores it.
METHODS = {
    **{name: (name, "direct") for name in ON_SUPPORT},
    **{name: (name, "lr") for name in ENCODERS},
    **{name: (name, "adapted") for name in META},
    **{name: (name, "direct") for name in ("hybrid", "hybrid_ddl", "hybrid_dic", "cls_only")},
    "no_distillation": ("moco_v1", "lr"),
    "con_reg": ("con_reg", "lr"),
    "con_cls": ("hybrid", "direct"),
    "con_cls_dic": ("hybrid_dic", "direct"),
    "hybrid+direct": ("hybrid", "direct"),
    "hybrid+lr": ("hybrid", "lr"),
    "hybrid_dic+direct": ("hybrid_dic", "direct"),
    "hybrid_dic+lr": ("hybrid_dic", "lr"),
    "adaptive_hard": ("hybrid_dic", "direct"),
    "adaptive_soft": ("dic_adaptive_soft", "direct"),
    "hard": ("dic_hard", "direct"),
    "soft": ("dic_soft", "direct"),
}


@dataclass(frozen=True)
class Table:
    """A table of the papers; `paper[method, shot][metric]` is (mean, std), in percent."""

    number: int
    dataset: str
    arch: str
    n_way: int
    paper: dict[tuple[str, str], dict[str, tuple[float, float | None]]]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.paper))

    @property
    def shots(self) -> list[str]:
        return sorted({shot for _, shot in self.paper}, key=lambda k: (k == "all", k.zfill(3)))

    @property
    def metrics(self) -> list[str]:
        return ["accuracy", *(f"A{n}" for n in range(1, self.n_way + 1)), "avg"]


def read_tables(path: Path = PAPER) -> dict[int, Table]:
    """Return the tables of the papers by number."""
    tables: dict[int, Table] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            number = int(row["table"])
            fields = (number, row["dataset"], row["backbone"], int(row["n_way"]))
            table = tables.setdefault(number, Table(*fields, paper={}))
            cell = table.paper.setdefault((row["method"], row["k_shot"]), {})
            cell[row["metric"]] = (float(row["mean"]), float(row["std"]) if row["std"] else None)
    return dict(sorted(tables.items()))


@dataclass(frozen=True)
class Study:
    """How to reproduce a table: its narrowing and folders. `machine` holds flags of all commands
    (--device, --workers)."""

    table: Table
    data: Path
    out: Path
    arch: str
    image_size: int
    epochs: int
    seeds: tuple[int, ...]
    shots: tuple[str, ...]
    methods: tuple[str, ...]
    group_disjoint: bool = False
    groups: Path | None = None
    allow_duplicates: bool = False
    amp: bool = False
    images: int | None = None  # number of base and rare images
    machine: tuple[str, ...] = ()
    tasks: int = TASKS
    classes: tuple[str, ...] = ()  # flags that name the classes of own images

    @property
    def own(self) -> bool:
        """Whether the images are the user's own, which no paper has scores of."""
        return bool(self.classes)

    @property
    def root(self) -> Path:
        """The output folder; studies that share encoders share it."""
        name = f"{self.table.dataset}-{self.arch}-{self.image_size}px-{self.epochs}epochs"
        return self.out / (name + "-amp" * self.amp)

    @property
    def rare_split(self) -> bool:
        return "oracle" in self.table.methods  # all rows of Table 11 are scored on that split

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Yield each (method, shot, seed) to run."""
        for method, shot in self.table.paper:
            if method in self.methods and shot in self.shots:
                yield from ((method, shot, seed) for seed in self.seeds)

    def many(self) -> Iterator[tuple[str, str]]:
        """Yield each (method, shot) to score over many tasks: those without training by task."""
        cells = dict.fromkeys((method, shot) for method, shot, _ in self.cells())
        if self.tasks:
            of_all_tasks = ENCODERS.keys() | META.keys()
            yield from ((m, shot) for m, shot in cells if model_of(self, m)[0] in of_all_tasks)

    def schedule(self) -> list[str]:
        """Return the flags that drop the learning rate at 60 and 80 % of the epochs."""
        return ["--schedule", *map(str, scaled_drops(self.epochs))]


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


def own_table(table: Table, name: str, rare_classes: Sequence[str], shots: Sequence[str]) -> Table:
    """Return the rows of a table for the user's own images, without the papers' scores.

    `shots` replace the table's, except for rows with all images.
    """
    paper: dict[tuple[str, str], dict[str, tuple[float, float | None]]] = {
        (method, shot): {}
        for method, of in table.paper
        for shot in (["all"] if of == "all" else shots)
    }
    return replace(table, dataset=name, n_way=len(rare_classes), paper=paper)


def model_of(study: Study, method: str) -> tuple[str, str]:
    """Return the model and the classifier of a row.

    DIC that is never measured is the method without it, which is not trained again.
    """
    model, classifier = METHODS[method]
    if model == "hybrid_dic" and study.epochs <= DIC_INTERVAL:
        model = "hybrid"
    return model, classifier


def jobs_of(study: Study) -> list[Job]:
    """Return the jobs of all cells, without duplicates, each after the jobs it needs."""
    jobs: dict[str, Job] = {}
    for method, shot, seed in study.cells():
        _score(jobs, study, method, shot, seed)
    for method, shot in study.many():
        _many(jobs, study, method, shot)
    return list(jobs.values())


def score_folder(study: Study, method: str, shot: str, seed: int) -> Path:
    """Return the folder of a cell's scores."""
    model, classifier = model_of(study, method)
    return study.root / "scores" / model / _task_name(study, shot, seed) / classifier


def many_file(study: Study, method: str, shot: str) -> Path:
    """Return the JSON file of a row's scores over many tasks."""
    model, classifier = model_of(study, method)
    folder = study.root / "scores" / model / f"{_tasks_name(study, shot)}_tasks" / classifier
    n_way = study.table.n_way
    return folder / f"tasks_{classifier}_{n_way}way_{shot}shot_{study.tasks}tasks.json"


def _tasks_name(study: Study, shot: str) -> str:
    return f"{shot}shot" + "_disjoint" * study.group_disjoint + "_split" * study.rare_split


def _task_name(study: Study, shot: str, seed: int) -> str:
    return f"{_tasks_name(study, shot)}_seed{seed}"


def _task_flags(study: Study, shot: str, seed: int | None) -> list[str]:
    """Return the flags that select a task, or without `seed` its kind."""
    flags = ["--n-way", str(study.table.n_way), "--k-shot", shot]
    flags += ["--seed", str(seed)] if seed is not None else []
    flags += ["--group-disjoint"] * study.group_disjoint + ["--rare-split"] * study.rare_split
    return [*flags, *_groups(study), *study.classes]


def _groups(study: Study) -> list[str]:
    return ["--groups", str(study.groups)] if study.groups else []


def _add(jobs: dict[str, Job], study: Study, name: str, command: Iterable[object], **fields) -> str:
    """Add a job unless it exists; return its name."""
    duplicates = ["--allow-duplicates"] * study.allow_duplicates
    words = (*map(str, command), *duplicates, *study.machine)
    return jobs.setdefault(name, Job(name=name, command=words, **fields)).name


def _training_flags(study: Study, command: Iterable[str]) -> list[str]:
    flags = ["--arch", study.arch, "--image-size", str(study.image_size)]
    flags += ["--epochs", str(study.epochs), "--amp" if study.amp else "--no-amp"]
    return flags if "--cos" in command else flags + study.schedule()


def _encoder(jobs: dict[str, Job], study: Study, name: str) -> str:
    script, folder, needs = ENCODERS[name], study.root / "encoders" / name, ()
    if name == "srl_distill":
        needs = (_encoder(jobs, study, "srl_simple"),)
        script = (*script, "--teacher", str(study.root / "encoders" / "srl_simple"))
    command = _script(script, study.data, "--model-path", folder)
    command += [*_training_flags(study, script), "--seed", "0", *study.classes]
    fields = {"folder": folder, "output": CHECKPOINT, "needs": needs, "epochs": study.epochs}
    return _add(jobs, study, f"encoder {name}", command, **fields)


def _meta(jobs: dict[str, Job], study: Study, name: str, shot: str) -> str:
    label = f"{name} {shot}shot" if "{shot}" in META[name] else name
    folder = study.root / "meta" / label.replace(" ", "_")
    needs = [encoder for encoder in ENCODERS if f"{{{encoder}}}" in META[name]]
    values = {encoder: study.root / "encoders" / encoder for encoder in needs}
    values |= {"shot": shot, "n_way": study.table.n_way}
    command = ["-m", f"baselines.{name}", study.data, "--model-path", folder]
    command += [word.format(**values) for word in META[name]]
    command += [*_training_flags(study, META[name]), "--seed", "0", *study.classes]
    needs = tuple(_encoder(jobs, study, encoder) for encoder in needs)
    fields = {"folder": folder, "output": CHECKPOINT, "needs": needs, "epochs": study.epochs}
    return _add(jobs, study, f"meta {label}", command, **fields)


def _script(script: tuple[str, ...], *rest: object) -> list[object]:
    """Insert `rest` between the script and its flags."""
    first = 2 if script[0] == "-m" else 1
    return [*script[:first], *rest, *script[first:]]


def _on_support(jobs: dict[str, Job], study: Study, name: str, shot: str, seed: int) -> str:
    task = _task_name(study, shot, seed)
    folder = study.root / "on_support" / name / task
    command = _script(ON_SUPPORT[name], study.data, "--model-path", folder)
    flags = _task_flags(study, shot, seed)
    if name == "oracle":  # has no shots: it trains on all training images of the split
        flags = ["--n-way", str(study.table.n_way), "--seed", str(seed)]
        flags += ["--group-disjoint"] * study.group_disjoint + _groups(study)
        flags += study.classes
    command += [*_training_flags(study, command), *flags]
    fields = {"folder": folder, "output": CHECKPOINT, "epochs": study.epochs}
    return _add(jobs, study, f"{name} {task}", command, **fields)


def _labels(jobs: dict[str, Job], study: Study, shot: str, seed: int) -> str:
    task = _task_name(study, shot, seed)
    folder = study.root / "labels" / task
    teacher = study.root / "encoders" / "moco_v1"
    command = ["generate_pseudo.py", "--datadir", study.data, "--resume", teacher]
    command += ["--savedir", folder, *_task_flags(study, shot, seed), "--overwrite", "--no-amp"]
    fields = {"folder": folder, "output": PSEUDO_FILE, "needs": (_encoder(jobs, study, "moco_v1"),)}
    return _add(jobs, study, f"labels {task}", command, **fields)


def _student(jobs: dict[str, Job], study: Study, name: str, shot: str, seed: int) -> str:
    task = _task_name(study, shot, seed)
    folder = study.root / "students" / name / task
    command = ["main_distill.py", study.data, "--savedir", study.root / "labels" / task]
    command += ["--model-path", folder, *STUDENTS[name], "--seed", seed]
    needs = (_labels(jobs, study, shot, seed),)
    fields = {"folder": folder, "output": CHECKPOINT, "needs": needs, "epochs": study.epochs}
    return _add(jobs, study, f"student {name} {task}", command, **fields)


def _scored_with(study: Study, model: str) -> str:
    """Return the precision of a score: float32, but a meta-trained model adapts as it trained."""
    return "--amp" if study.amp and model in META else "--no-amp"


def _many(jobs: dict[str, Job], study: Study, method: str, shot: str) -> str:
    model, classifier = model_of(study, method)
    training = _meta(jobs, study, model, shot) if model in META else _encoder(jobs, study, model)
    file = many_file(study, method, shot)
    flags = [*_task_flags(study, shot, None), "--tasks", study.tasks]
    command = ["test.py", study.data, "--resume", jobs[training].folder, *flags]
    command += ["--output", file.parent, "--overwrite", _scored_with(study, model)]
    name = f"tasks {model} {_tasks_name(study, shot)} {classifier}"
    fields = {"folder": file.parent, "output": file.name, "needs": (training,)}
    return _add(jobs, study, name, command, **fields)


def _score(jobs: dict[str, Job], study: Study, method: str, shot: str, seed: int) -> str:
    model, classifier = model_of(study, method)
    if model in ENCODERS:
        training, task_flags = _encoder(jobs, study, model), _task_flags(study, shot, seed)
    elif model in META:
        training, task_flags = _meta(jobs, study, model, shot), _task_flags(study, shot, seed)
    elif model in STUDENTS:
        training, task_flags = _student(jobs, study, model, shot, seed), _groups(study)
    else:
        training, task_flags = _on_support(jobs, study, model, shot, seed), _groups(study)
    folder = score_folder(study, method, shot, seed)
    command = ["test.py", study.data, "--resume", jobs[training].folder, *task_flags]
    command += ["--load-cla"] * (classifier == "direct")
    command += ["--no-teacher"] * (model in STUDENTS)  # it has rows of its own
    command += ["--output", folder, "--overwrite", _scored_with(study, model)]
    name = f"score {model} {_task_name(study, shot, seed)} {classifier}"
    fields = {"folder": folder, "output": "test_*.json", "needs": (training,)}
    return _add(jobs, study, name, command, **fields)
