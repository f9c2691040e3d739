"""Reproduce a table of the papers, in full or narrowed.

python -m reproduction --list
python -m reproduction --table 5 --dry-run
python -m reproduction --table 5 --data DATA --out runs/tables
python -m reproduction --table 5 --data my_images --base-classes A B --rare-classes C D
"""

import argparse
import hashlib
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import baselines
from common.errors import InputError, listed, refusing
from common.failures import tracebacks_to
from common.files import parse_json, require_writable, write_utf8
from datasets import Collection, open_dataset
from datasets.images import require_fingerprint, require_same
from datasets.open import draw, open_data
from moco.config import IMAGE_SIZE
from models import BACKBONES, MIN_IMAGE_SIZE
from reproduction.cost import encoder_epochs, images_per_second
from reproduction.plan import Job, jobs_of
from reproduction.run import TABLE, become, run_here, submit_to_slurm
from reproduction.study import (
    BASE_IMAGES,
    OF_BASE_CLASSES,
    SEEDS,
    TASKS,
    Study,
    Table,
    own_table,
    read_tables,
)
from reproduction.table import heading, write_table
from trainer import cli
from trainer.config import EPOCHS
from trainer.settings import at_least, natural, positive


def make_parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser("Reproduce a table of the papers, in full or narrowed.")
    add = parser.add_argument_group("table").add_argument
    add("--list", action="store_true", help="list the tables and their cost")
    add("--hours", action="store_true",
        help="give the cost in hours of this machine: measures some training steps")  # fmt: skip
    add("--table", type=int, choices=sorted(read_tables()), help="number in the journal paper")
    add("--data", "--datadir", type=Path, metavar="DATA", help="data folder")
    add("--out", type=Path, default=Path("runs/tables"), metavar="DIR", help="output folder")
    add("--dry-run", action="store_true", help="print the commands instead of running them")
    add = parser.add_argument_group("narrowing (stated in the table's heading)").add_argument
    add("--epochs", type=positive, default=EPOCHS, metavar="N",
        help="epochs of each run; the learning rate drops at 60 and 80 %% of them")  # fmt: skip
    add("--image-size", type=at_least(MIN_IMAGE_SIZE), default=IMAGE_SIZE, metavar="PIXELS",
        help="image width and height")  # fmt: skip
    add("-a", "--arch", choices=list(BACKBONES),
        help="backbone (default: the table's); always from random weights, as in the papers: for a "
        "pretrained encoder use baselines.pretrained and test.py --tasks")  # fmt: skip
    add("--seeds", type=natural, nargs="+", default=list(SEEDS), metavar="SEED",
        help="seeds of the tasks and of the models trained on them")  # fmt: skip
    add("--shots", nargs="+", metavar="K", help="support images per class (default: the table's)")
    add("--methods", nargs="+", metavar="NAME", help="rows (default: all)")
    add("--group-disjoint", "--lesion-disjoint", action="store_true",
        help="exclude query images of the support set's groups (patients, lesions)")  # fmt: skip
    add("--groups", type=Path, metavar="FILE", help="CSV file with the columns image,group")
    add("--group-column", metavar="NAME", help="another column of groups")
    add("--group-folders", action="store_true",
        help="take the folders within the class folders as groups")  # fmt: skip
    add("--tasks", type=natural, default=TASKS, metavar="N",
        help="tasks over which rows that need no training by task are scored as well, with a 95 %% "
        "confidence interval; 0: none")  # fmt: skip
    add("--base-classes", nargs="+", action="extend", metavar="CLASS",
        help="common classes of your own images, for the methods of the table")  # fmt: skip
    add("--rare-classes", nargs="+", action="extend", metavar="CLASS",
        help="rare classes of your own images")  # fmt: skip
    add("--allow-duplicates", action="store_true",
        help="count copies of an image as separate images")  # fmt: skip
    add("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    add("--amp", action="store_true",
        help="train and adapt to tasks in mixed precision (bfloat16); without it, in float32, on "
        "GPUs too")  # fmt: skip
    add("--norm-statistics", choices=["running", "image"], default="running",
        help="statistics of BatchNorm when scoring, as in test.py; meta-learning rows always adapt "
        "them to the support set")  # fmt: skip
    add = parser.add_argument_group("execution").add_argument
    add("--executor", choices=["local", "slurm"], default="local", help="where to run the jobs")
    add("--jobs", type=positive, default=1, metavar="N",
        help="jobs run in parallel on this machine; each gets one of several GPUs")  # fmt: skip
    add("--slurm", nargs="+", action="extend", default=[], metavar="KEY[=VALUE]",
        help="sbatch options of each job, without hyphens: gres=gpu:1 time=1440")  # fmt: skip
    add("--only", metavar="NAME", help="run a single job, by its printed name, or `table`")
    add("--device", metavar="DEVICE", help="passed on to every command")
    add("-j", "--workers", type=natural, metavar="N", help="passed on to every command")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.list and args.table is None:
        parser.error("--table N or --list is required")
    if not (args.list or args.dry_run or args.data):
        parser.error("--data DATA is required, except with --list or --dry-run")
    if bool(args.base_classes) != bool(args.rare_classes):
        parser.error("--base-classes and --rare-classes are needed together")
    if args.tasks == 1:
        parser.error("--tasks must be 0 or at least 2, got 1")
    if args.slurm and args.executor != "slurm":
        parser.error("--slurm takes effect with --executor slurm")
    return args


def study_of(table: Table, args: argparse.Namespace) -> Study:
    """Return the study that `args` ask for. Raises InputError for unknown methods or shots."""
    classes: tuple[str, ...] = ()
    if args.rare_classes:
        classes = ("--base-classes", *args.base_classes, "--rare-classes", *args.rare_classes)
        name = (args.data or Path("own")).resolve().stem
        if wrong := [shot for shot in args.shots or () if not shot.isdigit()]:
            raise InputError(f"--shots must be whole numbers, got {listed(wrong)}")
        table = own_table(table, name, args.rare_classes, args.shots)
    methods = args.methods or table.methods
    shots = table.shots if classes else args.shots or table.shots
    for flag, values, known in (("methods", methods, table.methods), ("shots", shots, table.shots)):
        if unknown := [value for value in values if value not in known]:
            raise InputError(
                f"--{flag} {listed(unknown)}: table {table.number} has {', '.join(known)}"
            )
    machine = ["--skip-unreadable"] * args.skip_unreadable
    for flag, value in (("--device", args.device), ("--workers", args.workers)):
        machine += [flag, str(value)] if value is not None else []
    data, out, groups = args.data or Path("DATA"), args.out, args.groups
    if not args.dry_run:  # the commands run in the repository's folder
        data, out, groups = data.resolve(), out.resolve(), groups and groups.resolve()
    grouping = ["--groups", str(groups)] if groups else []
    grouping += ["--group-column", args.group_column] if args.group_column else []
    grouping += ["--group-folders"] * args.group_folders
    same = ("image_size", "epochs", "group_disjoint", "allow_duplicates", "amp", "tasks",
            "norm_statistics")  # fmt: skip
    return Study(
        table=table,
        data=data,
        out=out,
        arch=args.arch or table.arch,
        seeds=tuple(dict.fromkeys(args.seeds)),
        shots=tuple(shot for shot in table.shots if shot in shots),
        methods=tuple(method for method in table.methods if method in methods),
        grouping=tuple(grouping),
        machine=tuple(machine),
        classes=classes,
        **{name: getattr(args, name) for name in same},
    )


def show_tables(args: argparse.Namespace) -> None:
    """Print one line per table: number, data, backbone, cost, shots and methods.

    The cost is in encoder-epochs, training epochs on the base images, and with --hours in hours of
    this machine; training on support sets costs next to nothing.
    """
    hours = f"{'hours':>9}" if args.hours else ""
    print(f"{'table':6}{'data':10}{'backbone':13}{'encoder-epochs':>15}{hours}  shots; methods")
    for table in read_tables().values():
        args.methods = args.shots = None
        study = study_of(table, args)
        epochs = encoder_epochs(jobs_of(study))
        if args.hours:
            rate = images_per_second(study.arch, study.image_size, study.amp, study.machine)
            hours = f"{epochs * BASE_IMAGES[table.dataset] / rate / 3600:>9,.1f}"
        print(
            f"{table.number:<6}{table.dataset:10}{study.arch:13}{epochs:>15,}{hours}  "
            f"{', '.join(table.shots)}; {', '.join(table.methods)}"
        )


def print_hours(study: Study, jobs: Sequence[Job], images: int) -> None:
    """Print how long the unfinished training of `jobs` takes on this machine."""
    epochs = encoder_epochs([job for job in jobs if not job.done()])
    rate = images_per_second(study.arch, study.image_size, study.amp, study.machine)
    hours = epochs * images / rate / 3600
    work = f"{epochs:,} epochs of {images:,} base images at {rate:.1f} images/s"
    print(f"training left: {work}: about {hours:,.1f} hours on this machine")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    baselines.register_all()
    if args.list:
        return show_tables(args)
    study = study_of(read_tables()[args.table], args)
    jobs = jobs_of(study)
    if args.dry_run:
        images = BASE_IMAGES.get(study.table.dataset)
        if args.data and (args.hours or args.data.exists()):
            opened = open_dataset(args.data, args.base_classes, args.rare_classes)
            require_dataset(study, opened)
            images = len(opened.base)
        if args.hours:
            if images is None:
                raise InputError("--hours of your own images needs --data")
            print_hours(study, jobs, images)
        for job in jobs:
            print(shlex.join(["python", *job.command]))
        return None
    if args.only and args.only != TABLE:
        by_name = {job.name: job for job in jobs}
        if args.only not in by_name:
            raise InputError(f"--only {args.only}: must be one of {listed(by_name)} or {TABLE}")
        return become(by_name[args.only])
    tracebacks_to(study.root)
    require_writable(study.root)
    data = open_images(study, args)
    study = replace(study, images=len(data.base) + len(data.rare))
    arguments = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "reproduction", *_without_paths(arguments)])
    print(heading(study))
    if args.hours:
        print_hours(study, jobs, len(data.base))
    if args.executor == "slurm" and not args.only:
        options = dict(word.partition("=")[::2] for word in args.slurm)
        for name, job_id in submit_to_slurm(jobs, study.root, options, arguments).items():
            print(f"{job_id}  {name}")
        print(f"submitted; table: {study.root}; output of the jobs: {study.root / 'logs'}")
        return None
    try:
        if not args.only:
            run_here(jobs, study.root / "logs", args.jobs)
    except SystemExit:  # of Ctrl-C or another signal, see `run_here`
        print("\nstopped; rerun the same command to resume", file=sys.stderr)
        raise
    except InputError:  # a job failed: the table has what the others made
        show_table(study, command)
        raise
    return show_table(study, command)


def open_images(study: Study, args: argparse.Namespace) -> Collection:
    """Open the data of a study, and print what was found.

    Raises InputError if it is another data set than the table's, a task cannot be drawn from it, or
    earlier runs used other images or groups.
    """
    data = open_data(
        study.data, args.base_classes, args.rare_classes, args.groups, args.group_column,
        args.group_folders, allow_duplicates=study.allow_duplicates,
    )  # fmt: skip
    require_dataset(study, data)
    for shot, seed in itertools.product(study.shots, study.seeds):
        k_shot = None if shot == "all" else int(shot)
        options = (study.table.n_way, k_shot, seed, study.group_disjoint, study.rare_split)
        draw(data, *options).query(data.rare, advice="fewer --shots or other --seeds leave some")
    require_tasks(study, data)
    require_labels(study, data)
    require_same_images(study, data)
    return data


def require_tasks(study: Study, data: Collection) -> None:
    """Raise InputError, before the work, if one of the many tasks has no query images."""
    shots = sorted({shot for _, shot in study.many()}) if study.group_disjoint else []
    advice = "fewer --shots or --tasks leave some; --tasks 0 does without these tasks"
    for shot, seed in itertools.product(shots, range(study.tasks)):
        k_shot = None if shot == "all" else int(shot)
        task = draw(data, study.table.n_way, k_shot, seed, True, study.rare_split)
        task.query(data.rare, advice=advice)


def require_labels(study: Study, data: Collection) -> None:
    """Raise InputError if methods need the labels of the base images, and these have one class."""

    def needs(method: str) -> bool:
        return study.model_of(method)[0] in OF_BASE_CLASSES

    wrong = [method for method in study.methods if needs(method)]
    if wrong and len(data.base.classes) < 2:
        others = [method for method in study.methods if method not in wrong]
        others = others or [method for method in study.table.methods if not needs(method)]
        raise InputError(
            f"{listed(wrong)} learn from the labels of at least two base classes, and there is "
            f"one; without labels: --methods {' '.join(others)}"
        )


def require_dataset(study: Study, data: Collection) -> None:
    """Raise InputError if the data are another data set than the table's."""
    if data.name != study.table.dataset and not study.own:
        raise InputError(
            f"table {study.table.number} needs {study.table.dataset}, but {study.data} is "
            f"{data.name}; for your own images, name --base-classes and --rare-classes"
        )


def show_table(study: Study, command: str) -> None:
    """Write the table, and print it."""
    print(write_table(study, command))
    print(f"written: {study.root}")


def require_same_images(study: Study, data: Collection) -> None:
    """Raise InputError if earlier runs of the study used other images or groups than `data`, or
    another order of the rare classes; record those of `data` where none are."""
    path, where = study.root / "images.json", f"choose another --out: the runs in {study.root}"
    sets = {"base": data.base, "rare": data.rare}
    recorded: dict = {}
    if path.exists():
        with refusing(f"{path} is broken; remove it"):
            recorded = parse_json(path.read_bytes(), newest=0)
            for part in sets:
                require_fingerprint(recorded[part])
        for part, images in sets.items():
            require_same(recorded[part], images, f"{where} used")
        if (order := list(recorded["rare"]["counts"])) != list(data.rare.classes):
            raise InputError(f"{where} have the rare classes in the order {', '.join(order)}")
    current = {part: images.fingerprint() for part, images in sets.items()}
    if study.group_disjoint:  # files of earlier versions do not tell
        groups = [(i, data.groups.get(i)) for i in sorted(data.rare.ids)]
        current["groups"] = hashlib.sha256(json.dumps(groups).encode()).hexdigest()
        if recorded.get("groups", current["groups"]) != current["groups"]:
            raise InputError(f"{where} used other groups (patients, lesions) of the rare images")
    if current.keys() - recorded.keys():
        write_utf8(path, json.dumps(recorded | current, indent=1))


def _without_paths(arguments: list[str]) -> list[str]:
    """Return the arguments as the table quotes them: with placeholders for paths, and without
    --only, which the Slurm jobs add."""
    names = {"--data": "DATA", "--datadir": "DATA", "--out": "OUT", "--groups": "FILE"}
    words = [""]
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        if words[-1] in names:
            words.append(names[words[-1]])
        elif equals and flag in names:
            words += [flag, names[flag]]
        elif not (equals and flag == "--only"):
            words.append(argument)
    return words[1:]


if __name__ == "__main__":
    cli.run(main)
