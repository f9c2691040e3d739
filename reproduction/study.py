"""The tables of the papers, and how one is reproduced: its rows, narrowing, folders and flags."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moco.config import Distillation
from trainer.config import scaled_drops
from trainer.provenance import REPOSITORY

PAPER = REPOSITORY / "results" / "paper_tables.csv"
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
OF_BASE_CLASSES = {"srl_simple", "srl_distill", "maml", "daml", "relationnet", "protonet"}
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


def read_tables() -> dict[int, Table]:
    """Return the tables of the papers by number."""
    tables: dict[int, Table] = {}
    with open(PAPER, newline="", encoding="utf-8") as file:
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
    (--device, --workers, --skip-unreadable)."""

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
    grouping: tuple[str, ...] = ()  # flags that say where the groups of images are
    allow_duplicates: bool = False
    amp: bool = False
    norm_statistics: str = "running"
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
            yield from ((m, shot) for m, shot in cells if self.model_of(m)[0] in of_all_tasks)

    def model_of(self, method: str) -> tuple[str, str]:
        """Return the model and the classifier of a row.

        DIC that is never measured is the method without it, which is not trained again.
        """
        model, classifier = METHODS[method]
        if model == "hybrid_dic" and self.epochs <= DIC_INTERVAL:
            model = "hybrid"
        return model, classifier

    def scored_by_image(self, model: str) -> bool:
        """Whether a model is scored with BatchNorm's statistics of each image; a meta-trained one
        adapts them to the support set."""
        return self.norm_statistics == "image" and model not in META

    def scores_of(self, model: str) -> Path:
        """Return the folder of a model's scores."""
        return self.root / ("scores_image" if self.scored_by_image(model) else "scores") / model

    def score_folder(self, method: str, shot: str, seed: int) -> Path:
        """Return the folder of a cell's scores."""
        model, classifier = self.model_of(method)
        return self.scores_of(model) / self.task_name(shot, seed) / classifier

    def many_file(self, method: str, shot: str) -> Path:
        """Return the JSON file of a row's scores over many tasks."""
        model, classifier = self.model_of(method)
        folder = self.scores_of(model) / f"{self.task_name(shot)}_tasks" / classifier
        n_way = self.table.n_way
        return folder / f"tasks_{classifier}_{n_way}way_{shot}shot_{self.tasks}tasks.json"

    def task_name(self, shot: str, seed: int | None = None) -> str:
        """Return the name of a task, or without `seed` of its kind."""
        name = f"{shot}shot" + "_disjoint" * self.group_disjoint + "_split" * self.rare_split
        return name if seed is None else f"{name}_seed{seed}"

    def task_flags(self, shot: str | None, seed: int | None = None) -> list[object]:
        """Return the flags that select a task, or without `seed` its kind."""
        flags: list[object] = ["--n-way", self.table.n_way]
        flags += ["--k-shot", shot] if shot is not None else []
        flags += ["--seed", seed] if seed is not None else []
        flags += ["--group-disjoint"] * self.group_disjoint
        flags += ["--rare-split"] * (self.rare_split and shot is not None)
        return [*flags, *self.grouping, *self.classes]

    def training_flags(self, cosine: bool) -> list[object]:
        """Return the flags of any training; the learning rate drops at 60 and 80 % of the epochs,
        but on the `cosine` schedule."""
        flags = ["--arch", self.arch, "--image-size", self.image_size, "--epochs", self.epochs]
        flags += ["--amp" if self.amp else "--no-amp"]
        return flags if cosine else [*flags, "--schedule", *scaled_drops(self.epochs)]


def own_table(
    table: Table, name: str, rare_classes: Sequence[str], shots: Sequence[str] | None
) -> Table:
    """Return the rows of a table for the user's own images, without the papers' scores.

    `shots`, if given, replace the table's, except for rows with all images.
    """
    paper: dict[tuple[str, str], dict[str, tuple[float, float | None]]] = {
        (method, shot): {}
        for method, of in table.paper
        for shot in ([of] if of == "all" else shots or [of])
    }
    return replace(table, dataset=name, n_way=len(rare_classes), paper=paper)
