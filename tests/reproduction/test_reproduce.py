"""Reproducing the papers' tables: the commands, running them, and the resulting table."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import InputError
from common.files import folder_lock
from conftest import REPOSITORY, SETTINGS, call, load_script, refused
from datasets import isic2018
from moco.config import Pretraining
from reproduction import cost, run, table
from reproduction.plan import Job, jobs_of
from reproduction.study import ENCODERS, META, METHODS, ON_SUPPORT, STUDENTS, read_tables
from trainer import cli
from trainer.flags import parse
from trainer.settings import resolve

reproduce = load_script("reproduction.__main__")

BY_WORD = {name if "." in name else f"{name}.py": cls for name, cls in SETTINGS.items()}


def commands(capsys, *argv: object) -> list[list[str]]:
    """Return the commands of --dry-run, as words after `python`."""
    reproduce.main(["--dry-run", *map(str, argv)])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert {words[0] for words in lines} == {"python"}
    return [words[2:] if words[1] == "-m" else words[1:] for words in lines]


def study(*argv: object):
    args = reproduce.parse([str(word) for word in argv])
    return reproduce.study_of(read_tables()[args.table], args)


@pytest.mark.parametrize("number", read_tables())
def test_commands_of_every_table_parse(number, capsys):
    """Each stage reads the outputs of earlier commands, no two write to the same folder, and every
    cell is scored."""
    written: set[str] = set()
    for script, *words in commands(capsys, "--table", number):
        given = parse(BY_WORD[script], words)
        for flag in ("resume", "teacher", "encoder", "savedir"):
            read = given.get(flag)
            if read and not (script == "generate_pseudo.py" and flag == "savedir"):
                assert str(read) in written, (script, flag, read)
        makes = {"generate_pseudo.py": "savedir", "test.py": "output"}.get(script, "model_path")
        made = str(given[makes])
        assert made not in written
        written.add(made)
    whole = study("--table", number, "--dry-run")
    cells = [whole.score_folder(*cell) for cell in whole.cells()]
    assert len(cells) == 3 * len(whole.table.paper)
    cells += [whole.many_file(*row).parent for row in whole.many()]
    assert set(map(str, cells)) <= written


def test_table_5_runs_what_the_paper_did(capsys):
    found = commands(capsys, "--table", 5)
    of = {script: [c for c in found if c[0] == script] for script in BY_WORD}
    assert len(of["main_moco.py"]) == 1
    assert len(of["generate_pseudo.py"]) == 9  # three shots, three seeds
    assert len(of["main_distill.py"]) == 27  # Hbr.Dst., -DDL and -DIC on each of these tasks
    assert len(of["baselines.srl"]) == 2 and len(of["baselines.scratch"]) == 9
    many = [c for c in of["test.py"] if "--tasks" in c]
    methods = read_tables()[5].methods
    assert len(of["test.py"]) - len(many) == 9 * len(methods) == 9 * 14
    # The supervised meta-learning methods once for each number of shots, the others once.
    times = {name: len(of[f"baselines.{name}"]) for name in META}
    assert times == {
        "maml": 3, "daml": 3, "relationnet": 3, "protonet": 3, "umtra": 1, "cactus_maml": 1,
        "cactus_protonet": 1,
    }  # fmt: skip
    # moco_v1, srl_simple, srl_distill and these seven need no training by task; three shots.
    assert len(many) == 30 and all(c[c.index("--tasks") + 1] == "600" for c in many)
    args = resolve(Pretraining, parse(Pretraining, of["main_moco.py"][0][1:]))
    assert (args.arch, args.image_size, args.epochs, args.schedule) == (
        "conv4",
        224,
        200,
        [120, 160],
    )
    corrections = [
        c[c.index("--correction") + 1] for c in of["main_distill.py"] if "--correction" in c
    ]
    assert sorted(corrections) == ["ddl"] * 9 + ["dic"] * 9


def test_table_1_has_moco_v2_and_simclr(capsys):
    found = commands(capsys, "--table", 1)
    encoders = [c for c in found if c[0] in ("main_moco.py", "baselines.simclr", "baselines.srl")]
    assert len(encoders) == 5
    (v2,) = [c for c in encoders if "--mlp" in c]
    assert {"--cos", "--aug-plus"} <= set(v2) and v2[v2.index("--moco-t") + 1] == "0.2"
    assert "--schedule" not in v2
    assert all("resnet12" in c for c in encoders)


def test_table_11_scores_all_rows_on_the_split_and_has_the_oracle(capsys):
    found = commands(capsys, "--table", 11)
    oracles = [c for c in found if "--oracle" in c]
    assert len(oracles) == 3
    drawn = [c for c in found if "--k-shot" in c and c[0].partition(".")[2] not in META]
    assert drawn and all("--rare-split" in c for c in drawn)


def test_tables_of_one_data_set_share_their_runs(capsys):
    of = {n: {" ".join(c) for c in commands(capsys, "--table", n)} for n in (1, 7, 8, 9)}
    assert len(of[8] - of[1]) == 18 and all("scores" in c for c in of[8] - of[1])  # LR's alone
    trained = {c for c in of[9] - of[1] if "main_distill" in c}
    assert len(trained) == 27 and all("--pseudo-label" in c for c in trained)


def test_narrowing(capsys):
    narrow = ["--table", 5, "--epochs", 100, "--image-size", 84, "--shots", 5, 1, "--seeds", 1]
    narrow += [
        "--methods",
        "moco_v1",
        "hybrid_dic",
        "--arch",
        "resnet12",
        "--device",
        "cpu",
        "-j",
        0,
    ]
    found = commands(capsys, *narrow)
    assert len(found) == 1 + 2 * (1 + 1 + 1 + 1 + 1)
    assert len(commands(capsys, *narrow, "--tasks", 0)) == 1 + 2 * (1 + 1 + 1 + 1)
    assert all(c[-4:] == ["--device", "cpu", "--workers", "0"] for c in found)
    args = resolve(Pretraining, parse(Pretraining, found[0][1:]))
    assert (args.arch, args.image_size, args.epochs, args.schedule) == (
        "resnet12",
        84,
        100,
        [60, 80],
    )
    heading = table.heading(study(*narrow, "--dry-run", "--lesion-disjoint"))
    parts = ["Table 5", "resnet12 instead of conv4", "84 pixels instead of 224", "seeds 1"]
    parts += ["100 epochs instead of 200", "shots 1, 5 of 1, 3, 5", "moco_v1, hybrid_dic"]
    assert all(part in heading for part in [*parts, "group-disjoint"])
    assert "narrowed" not in table.heading(study("--table", 5, "--dry-run"))
    as_run = table.heading(study("--table", 5, "--dry-run", "--arch", "conv4_released"))
    assert "conv4_released, the block that the authors ran" in as_run and "narrowed" not in as_run
    other = table.heading(study("--table", 3, "--dry-run", "--arch", "conv4_released"))
    assert "narrowed: conv4_released instead of resnet12" in other


def test_too_few_epochs_for_dic(capsys):
    short = study("--table", 5, "--dry-run", "--epochs", 10)
    assert "too short for DIC" in table.heading(short)
    assert short.training_flags(cosine=False)[-3:] == ["--schedule", 6, 8]
    assert "--schedule" not in short.training_flags(cosine=True)
    assert "too short" not in table.heading(study("--table", 5, "--dry-run", "--epochs", 11))
    shortest = study("--table", 5, "--dry-run", "--epochs", 1)
    assert shortest.training_flags(cosine=False)[-3:] == ["--schedule", 1, 1]


@pytest.mark.parametrize(
    "grouping",
    [["--groups", "g.csv"], ["--groups", "g.csv", "--group-column", "case"], ["--group-folders"]],
)
def test_groups_are_passed_on_wherever_a_task_is_drawn_or_scored(capsys, grouping):
    for command in commands(capsys, "--table", 5, "--seeds", 0, "--shots", 1, *grouping):
        draws = command[0] in ("generate_pseudo.py", "test.py") or "baselines.scratch" in command
        assert [word for word in command if word in grouping] == grouping * draws


def test_groups_and_duplicates_are_passed_on(capsys):
    flags = ["--group-disjoint", "--groups", "g.csv", "--allow-duplicates", "--skip-unreadable"]
    found = commands(capsys, "--table", 5, "--seeds", 0, "--shots", 1, *flags)
    for command in found:
        assert {"--allow-duplicates", "--skip-unreadable"} <= set(command)
        draws = command[0] in ("generate_pseudo.py", "test.py") or "baselines.scratch" in command
        assert ("g.csv" in command) == draws
    assert any("--group-disjoint" in c for c in found if c[0] == "generate_pseudo.py")
    heading = table.heading(study("--table", 5, "--dry-run", *flags))
    assert "group-disjoint tasks" in heading and "copies counted as images" in heading
    assert "without unreadable images" in heading


def test_a_row_that_equals_another_is_not_trained_again(capsys):
    """DIC measures the dispersions first after epoch 10, so that 10 epochs are without it."""

    def students(epochs):
        found = commands(capsys, "--table", 5, "--epochs", epochs)
        return [c for c in found if c[0] == "main_distill.py"]

    assert len(students(11)) == 27 and len(students(10)) == 18
    assert not any("dic" in c for c in students(10))
    short = study("--table", 5, "--dry-run", "--epochs", 10)
    folders = {short.score_folder(method, "1", 0) for method in ("hybrid", "hybrid_dic")}
    assert len(folders) == 1


OWN = ["--base-classes", "nevus", "melanoma", "--rare-classes", "scar", "vessel"]


def test_own_images(capsys):
    """The rows of a table on other classes, with any shots, in a folder of their own."""
    found = commands(capsys, "--table", 5, *OWN, "--shots", 2, 4, "--data", "my_images")
    for script, *words in found:
        given = parse(BY_WORD[script], words)
        if script in ("main_moco.py", "generate_pseudo.py", "baselines.scratch", "baselines.srl"):
            assert given["base_classes"] == ["nevus", "melanoma"], script
            assert given["rare_classes"] == ["scar", "vessel"], script
        assert given.get("n_way", 2) == 2 and given.get("k_shot", 2) in (2, 4)
        assert "my_images-conv4-224px" in " ".join(words)
    heading = table.heading(study("--table", 5, *OWN, "--shots", 2, "--dry-run"))
    assert heading.startswith("Methods of table 5 on own") and "2-way" in heading
    with pytest.raises(InputError, match="whole numbers"):
        study("--table", 5, *OWN, "--shots", "all", "--dry-run")


def test_own_images_with_a_row_of_all_images(capsys):
    """Table 11's oracle, whatever the shots of the others are."""
    for shots in ([], ["--shots", 3]):
        found = commands(capsys, "--table", 11, *OWN, *shots)
        assert not any("all" in words for words in found)
        assert {"--oracle" in words for words in found} == {True, False}
        assert {w[w.index("--k-shot") + 1] for w in found if "--k-shot" in w} == (
            {"3"} if shots else {"1", "3", "5", "20"}
        )


@pytest.fixture
def little(tmp_path, data):
    """Own images: the synthetic lesions as class folders of other names."""
    names = {"NV": "nevus", "MEL": "melanoma", "DF": "scar", "VASC": "vessel"}
    for row in isic2018.find(data).rows:
        if row.label in names:
            folder = tmp_path / "my images" / names[row.label]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(row.path, folder)
    return tmp_path / "my images"


def run_in_this_process(jobs, *_) -> None:
    """Run jobs one after the other without starting Python for each, which takes longer than the
    tiny jobs themselves."""
    for one in jobs:
        first, *argv = one.command
        call(argv.pop(0) if first == "-m" else first.removesuffix(".py"), *argv)
        assert one.done(), one.name


def test_a_table_of_own_images(little, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "run_here", run_in_this_process)
    argv = ["--table", "5", *OWN, "--data", little, "--out", tmp_path, "--epochs", 1, "-j", 0]
    argv += ["--image-size", 32, "--shots", 2, "--methods", "moco_v1", "--seeds", 0, 1]
    reproduce.main([str(word) for word in [*argv, "--tasks", 5]])
    text = capsys.readouterr().out
    root = tmp_path / "my images-conv4-32px-1epochs"
    assert (root / "table5.md").read_text() in text
    assert "Methods of table 5 on my images" in text and "paper" not in text
    found = json.loads(next(root.rglob("tasks_lr_2way_2shot_5tasks.json")).read_text())["scores"]
    accuracy = found["accuracy"]
    cell = f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['ci95']:.1f}"
    assert "## Over 5 tasks" in text and f"| moco_v1 | 2 | {cell} |" in text
    with open(root / "table5.csv") as file:
        rows = {r["metric"]: r for r in csv.DictReader(file) if r["runs"] == "2"}
    assert float(rows["accuracy"]["tasks_mean"]) == pytest.approx(100 * accuracy["mean"], abs=0.01)
    of_class = found["accuracy_vessel"]["mean"]
    assert float(rows["A2"]["tasks_mean"]) == pytest.approx(100 * of_class, abs=0.01)
    assert rows["avg"]["tasks"] == "5" and rows["avg"]["paper_mean"] == ""


def test_ctrl_c_ends_with_a_line_and_no_table(smears, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        return 1

    monkeypatch.setattr(run, "run_job", interrupted)
    argv = ["--table", 5, "--data", smears, "--out", tmp_path, "--image-size", 32]
    with pytest.raises(SystemExit) as stop:
        reproduce.main([str(word) for word in argv])
    printed = capsys.readouterr()
    assert stop.value.code == 130 and not list(tmp_path.rglob("*.md"))
    assert printed.err.strip() == "stopped; rerun the same command to resume"
    assert "| moco_v1" not in printed.out


def test_hours_of_this_machine(smears, tmp_path, capsys, monkeypatch):
    """Hours are epochs times base images by the measured speed; finished training costs none."""
    monkeypatch.setattr(reproduce, "images_per_second", lambda *_: 10.0)
    reproduce.main(["--list", "--hours"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[4] == f"{9400 * 9431 / 10 / 3600:,.1f}"
    argv = ["--table", 5, "--methods", "moco_v1", "--epochs", 90, "--dry-run", "--hours"]
    reproduce.main([*map(str, argv), "--data", str(smears), "--out", str(tmp_path)])
    expected = f"90 epochs of 32 base images at 10.0 images/s: about {90 * 32 / 36000:.1f} hours"
    assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_speed_is_measured():
    assert cost.images_per_second("conv4", 32, False, ("-j", "0")) > 1
    with pytest.raises(InputError, match="cannot measure the training of conv4"):
        cost.images_per_second("conv4", 32, False, ("--device", "nonsense"))


def test_flags_of_the_oracle(capsys):
    found = commands(capsys, "--table", 11, "--lesion-disjoint")
    for command in (c for c in found if "--oracle" in c):
        given = parse(SETTINGS["baselines.scratch"], command[1:])
        assert given["group_disjoint"] and "rare_split" not in given and given["n_way"] == 3


def test_mixed_precision_has_its_own_folder_and_heading(capsys):
    exact, mixed = study("--table", 5, "--dry-run"), study("--table", 5, "--dry-run", "--amp")
    assert exact.root != mixed.root and "narrowed: mixed precision" in table.heading(mixed)
    trained = [c for c in commands(capsys, "--table", 5, "--amp") if "--epochs" in c]
    assert trained and all("--amp" in c for c in trained)  # students inherit it
    for command in commands(capsys, "--table", 5):  # whatever the machine's own default is
        assert command[0] == "main_distill.py" or "--no-amp" in command
    scores = [c for c in commands(capsys, "--table", 5, "--amp") if c[0] == "test.py"]
    for command in scores:  # adapting to a task is training, too
        assert ("--amp" in command) == ("meta" in Path(command[3]).parts)
        assert ("--no-amp" in command) == ("--amp" not in command)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--table", 5, "--dry-run", "--methods", "simclr"], "--methods simclr"),
        (["--table", 5, "--dry-run", "--shots", "2"], "1, 3, 5"),
        (["--table", 12, "--dry-run"], "invalid choice"),
        (["--table", 5], "--data DATA"),
        (["--dry-run"], "--table N or --list"),
        (["--table", 5, "--data", "nowhere", "--out", "OUT"], "does not exist"),
        (["--table", 5, "--data", "DATA", "--out", "OUT"], "papsmear"),
    ],
)
def test_refusals(argv, expected, data, tmp_path, capsys, monkeypatch):
    places = {"DATA": data, "OUT": tmp_path}
    argv = [str(places.get(word, word)) for word in argv]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(reproduce.main)
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and expected in message and len(message.splitlines()) == 1, message


def test_list(capsys):
    reproduce.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 11
    assert lines[1].split()[:4] == ["1", "isic2018", "resnet12", "9,400"]  # (5 + 15 + 27) · 200


NARROW_METHODS = ["moco_v1", "hybrid", "hybrid_ddl", "hybrid_dic"]
NARROW = "--table 5 --epochs 1 --image-size 32 --shots 1 --seeds 0 -j 0 --jobs 2 --tasks 4".split()
NARROW += ["--methods", *NARROW_METHODS]


@pytest.mark.slow
def test_a_narrowed_table_5(smears, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    argv = [*NARROW, "--data", str(smears), "--out", str(tmp_path)]
    reproduce.main(argv)
    printed = capsys.readouterr().out
    root = tmp_path / "papsmear-conv4-32px-1epochs"
    text = (root / "table5.md").read_text()
    assert text in printed
    assert "narrowed: 50 images instead of 917; 32 pixels instead of 224; 1 epochs" in text
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[: len(NARROW_METHODS) + 1] == ["| method", *(f"| {m}" for m in NARROW_METHODS)]
    assert "not run" not in text and "3-shot" not in text
    assert "| 55.2 (6.4) |" in text  # the paper's
    assert "--data DATA --out OUT" in text and str(tmp_path) not in text
    with open(root / "table5.csv") as file:
        rows = list(csv.DictReader(file))
    mine = {(r["method"], r["metric"]): r for r in rows if r["runs"] == "1"}
    assert {method for method, _ in mine} == {"moco_v1", "hybrid", "hybrid_ddl", "hybrid_dic"}
    # Without DIC in a single epoch, its row is that of the hybrid method.
    (scores,) = (root / "scores" / "hybrid" / "1shot_seed0" / "direct").glob("*.json")
    assert not (root / "students" / "hybrid_dic").exists()
    scores = json.loads(scores.read_text())
    row = mine["hybrid_dic", "accuracy"]
    assert float(row["ours_mean"]) == pytest.approx(100 * scores["accuracy"], abs=0.005)
    apart = (100 * scores["accuracy"] - float(row["paper_mean"])) / float(row["paper_std"])
    assert float(row["difference_in_std"]) == pytest.approx(apart, abs=0.01)
    classes = list(scores["per_class"].values())
    assert float(mine["hybrid_dic", "A2"]["ours_mean"]) == pytest.approx(
        100 * classes[1], abs=0.005
    )

    runs = [line.split(",") for line in (root / "table5_runs.csv").read_text().splitlines()]
    assert [run[:3] for run in runs[1:]] == [[r, "1", "0"] for r in NARROW_METHODS]
    assert float(runs[-1][3]) == pytest.approx(100 * scores["accuracy"], abs=0.005)

    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.pth.tar")}
    reproduce.main(argv)  # nothing left to run
    assert "8 jobs, 8 done" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*.pth.tar")}
    # Fewer rows of the same study: another heading, nothing to run.
    reproduce.main([*argv, "--methods", "moco_v1"])
    assert "methods moco_v1" in (root / "table5.md").read_text()
    printed = capsys.readouterr().out
    assert (
        "note: table5.md had more before: hybrid 1-shot, hybrid_ddl 1-shot, hybrid_dic" in printed
    )


@pytest.mark.slow
def test_every_row_of_a_narrowed_table_5(smears, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_here", run_in_this_process)
    narrow = "--table 5 --epochs 2 --image-size 32 --shots 1 --seeds 0 --tasks 3 -j 0"
    reproduce.main([*narrow.split(), "--data", str(smears), "--out", str(tmp_path)])
    root = tmp_path / "papsmear-conv4-32px-2epochs"
    with open(root / "table5.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["k_shot"] == "1"]
    assert {row["method"] for row in rows} == set(read_tables()[5].methods)
    assert all(row["runs"] == "1" and row["ours_mean"] for row in rows)
    many = list(root.rglob("tasks_adapted_3way_1shot_3tasks.json"))
    assert len(many) == len(META)


def job(name: str, folder: Path, code: str, *needs: str) -> Job:
    script = f"from pathlib import Path; p = Path({str(folder)!r}); {code}"
    return Job(name, ("-c", script), folder, name, needs)


def test_failure_skips_dependent_jobs(tmp_path, capsys):
    make = "(p / {!r}).write_text('')"
    jobs = [
        job("good", tmp_path, make.format("good")),
        job("bad", tmp_path, "raise SystemExit('no space')"),
        job("after good", tmp_path, "(p / 'good').stat(); " + make.format("after good"), "good"),
        job("after bad", tmp_path, make.format("after bad"), "bad", "good"),
    ]
    with pytest.raises(InputError, match="failed: bad; .*1 job"):
        run.run_here(jobs, tmp_path / "logs", max_jobs=2)
    assert jobs[2].done() and not jobs[3].done()
    assert "no space" in (tmp_path / "logs" / "bad.log").read_text()
    assert f"FAILED: bad; see {tmp_path / 'logs' / 'bad.log'}: no space" in capsys.readouterr().out
    jobs[1] = job("bad", tmp_path, make.format("bad"))  # fixed
    run.run_here(jobs, tmp_path / "logs")
    assert all(one.done() for one in jobs)


STOPPED = """
import signal; from pathlib import Path; from reproduction.run import run_here
from reproduction.plan import Job
p = Path({folder!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes
def job(n):
    code = f"import time; open({folder!r} + '/started{{n}}', 'w').write(''); time.sleep(60)"
    return Job(str(n), ("-c", code), p, f"done{{n}}")
run_here([job(n) for n in range(3)], p / "logs", max_jobs=1)
"""


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_stopping_it_stops_the_commands(tmp_path, how):
    """The running command ends, and no other starts."""
    script = STOPPED.format(folder=str(tmp_path))
    runner = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stderr=-3, stdout=-3)
    while not (tmp_path / "started0").exists():
        assert runner.poll() is None
        time.sleep(0.1)
    start = time.monotonic()
    runner.send_signal(how)
    assert runner.wait(timeout=50) != 0 and time.monotonic() - start < 50
    assert not (tmp_path / "started1").exists()


def become(job: Job) -> int:
    code = "from pathlib import *; from reproduction.plan import *; from reproduction.run import *"
    code += f"; become({job!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode


def run_here(job: Job) -> int:
    return run.run_job(job, set(), threading.Event())


@pytest.mark.parametrize("how", [run_here, pytest.param(become, marks=pytest.mark.slow)])
def test_a_job_is_run_by_one_process_alone(tmp_path, how):
    """The second process waits, and finds the job done."""
    code = "import time; time.sleep(2); (p / 'n').open('a').write('x'); " + (
        "(p / 'twice').write_text('')"
    )
    both = [job("twice", tmp_path, code) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(how, both)) == [0, 0]
    assert (tmp_path / "n").read_text() == "x"


def test_stopped_while_waiting(tmp_path):
    stopped = threading.Event()
    stopped.set()
    waiting = job("late", tmp_path, "p.joinpath('late').write_text('')")
    assert run.run_job(waiting, set(), stopped) == 143 and not (tmp_path / "late").exists()


def test_stopped_while_another_table_runs_the_job(tmp_path):
    stopped = threading.Event()
    waiting = job("late", tmp_path, "p.joinpath('late').write_text('')")
    with folder_lock(tmp_path) as lock:
        assert lock is not None
        threading.Timer(0.3, stopped.set).start()
        assert run.run_job(waiting, set(), stopped) == 143  # or it would wait for ever
    assert not (tmp_path / "late").exists()


def test_stopped_while_starting(tmp_path, monkeypatch):
    """A command that starts just when all are stopped is stopped, too."""
    stopped = threading.Event()

    class Late(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            stopped.set()

    monkeypatch.setattr(subprocess, "Popen", Late)
    late = job("late", tmp_path, "import time; time.sleep(50); p.joinpath('late').write_text('')")
    assert run.run_job(late, set(), stopped) == -signal.SIGTERM and not late.done()


def test_other_images_in_the_same_folder(smears, tmp_path, capsys, monkeypatch):
    """Scores of other images are not reused; a subset is stated in the heading."""
    other = tmp_path / "other"
    shutil.copytree(smears, other)
    next((other / "normal_columnar").iterdir()).unlink()
    monkeypatch.setattr(reproduce, "run_here", lambda *_: None)
    out = ["--out", tmp_path / "out", "--table", 5, "--methods", "moco_v1", "--shots", 1]
    call("reproduction.__main__", "--data", smears, *out)
    assert "narrowed: 50 images instead of 917" in capsys.readouterr().out
    message = refused(capsys, monkeypatch, "reproduction.__main__", "--data", other, *out)
    assert all(part in message for part in ("normal_columnar 6", "normal_columnar 5", "--out"))


def test_other_groups_or_classes_in_the_same_folder(little, tmp_path, capsys, monkeypatch):
    """Tasks drawn by other groups, or classes in another order, are not taken for this table's."""
    monkeypatch.setattr(reproduce, "run_here", lambda *_: None)
    ids = sorted(f"{p.parent.name}/{p.name}" for p in little.rglob("*.jpg"))
    for name, size in (("a", 1), ("b", 2)):
        rows = "".join(f"{image},{n // size}\n" for n, image in enumerate(ids))
        (tmp_path / f"{name}.csv").write_text("image,group\n" + rows)
    argv = ["--data", little, "--out", tmp_path / "out", "--table", 5, "--shots", 1, "--seeds", 0]
    groups = ["--group-disjoint", "--groups"]
    call("reproduction.__main__", *argv, *OWN)  # which does not depend on groups
    for _ in range(2):
        call("reproduction.__main__", *argv, *OWN, *groups, tmp_path / "a.csv")
    capsys.readouterr()
    words = [*argv, *OWN, *groups, tmp_path / "b.csv"]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *words)
    assert "--out" in message and "other groups" in message
    words = [*argv, *OWN[:-2], *reversed(OWN[-2:])]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *words)
    assert "--out" in message and "in the order scar, vessel" in message


def test_paths_are_not_in_the_table():
    words = "--table 5 --datadir /a --groups=/b --out /c --only=table --group-folders".split()
    kept = "--table 5 --datadir DATA --groups FILE --out OUT --group-folders".split()
    assert reproduce._without_paths(words) == kept


def test_impossible_tasks_are_rejected_early(smears, tmp_path, capsys, monkeypatch):
    argv = ["--data", smears, "--out", tmp_path, "--table", 5]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv, "--lesion-disjoint")
    assert "--group-disjoint" in message


def test_one_visible_gpu_per_slot(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = [run._environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert seen == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    seen = [run._environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert seen == ["5", "3"]


def test_stopped_training_is_not_done(smears, tmp_path, chain):
    (encoder,) = (
        j for j in jobs_of(study(*NARROW, "--data", smears, "--out", tmp_path)) if "enc" in j.name
    )
    assert not encoder.done()
    started = replace(encoder, folder=chain.pretrained, epochs=3)  # the chain has two
    assert not started.done()
    assert replace(started, epochs=2).done()


SBATCH = """#!/bin/sh
n=$(ls "$FAKE" | wc -l); printf '%s\\n' "$@" > "$FAKE/$n"
echo "$((100 + n));cluster"
"""


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """A folder with the arguments of each sbatch call, a file per call."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "sent").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("FAKE", str(tmp_path / "sent"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "sent"


def test_the_chain_of_jobs(data, tmp_path, sent, monkeypatch):
    monkeypatch.setenv("PRETRAIN", '--base-classes "common nevus" mole -b 8')
    script = [REPOSITORY / "scripts" / "slurm" / "chain.sh", data, tmp_path / "out"]
    options = ["--clusters=wice", "--dependency=after:9", "--time=9"]
    subprocess.run(["bash", *script, *options], check=True, capture_output=True)
    jobs = [(sent / str(n)).read_text().splitlines() for n in range(4)]
    after = ["", *(f"afterok:{number}," for number in (100, 101, 102))]
    for words, needs in zip(jobs, after, strict=True):
        found = [word for word in words if word.startswith("--dependency")]
        assert found == [f"--dependency={needs}singleton,after:9"]
        assert {"--clusters=wice", "--time=9"} < {*words}
    assert jobs[0][-5:] == ["--base-classes", "common nevus", "mole", "-b", "8"]
    subprocess.run(["bash", *script], check=True, capture_output=True)
    failed = subprocess.run(["bash", *script, "-d", "after:9"], capture_output=True, text=True)
    assert failed.returncode == 2 and "write --dependency=LIST" in failed.stderr


def test_slurm_jobs_and_dependencies(smears, tmp_path, sent, capsys):
    argv = [*NARROW, "--data", str(smears), "--out", str(tmp_path / "out")]
    options = ["partition=gpu", "exclusive", "dependency=after:9"]
    reproduce.main([*argv, "--executor", "slurm", "--slurm", *options])
    job_ids = dict(
        line.split("  ", 1)[::-1] for line in capsys.readouterr().out.splitlines() if line[0] == "1"
    )
    jobs = jobs_of(study(*argv))
    assert list(job_ids) == [*(j.name for j in jobs), "table"]
    for j in jobs:
        words = (sent / str(int(job_ids[j.name]) - 100)).read_text().splitlines()
        after = ":".join([",afterok", *(job_ids[n] for n in j.needs)]) if j.needs else ""
        assert f"--dependency=singleton,after:9{after}" in words
        assert {"--partition=gpu", "--exclusive"} < set(words)
        assert words[-1] == f"--only={j.name}" and "scripts/slurm/job.sbatch" in " ".join(words)
    last = (sent / str(len(jobs))).read_text()
    assert ":".join([",afterany", *(job_ids[j.name] for j in jobs)]) in last


def test_only_one_job(smears, tmp_path, capsys, monkeypatch):
    """It replaces the process, unless it is done."""
    became = []
    monkeypatch.setattr(run.os, "execv", lambda path, words: became.append(words[1:]))
    monkeypatch.setattr(run.os, "chdir", lambda path: None)
    argv = [*NARROW, "--data", str(smears), "--out", str(tmp_path)]
    encoder = jobs_of(study(*argv))[0]
    reproduce.main([*argv, "--only", encoder.name])
    assert became == [list(encoder.command)]
    done = job("x", tmp_path, "raise SystemExit(3)")
    (tmp_path / "x").touch()
    run.become(done)
    assert len(became) == 1
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv, "--only", "encoder")
    assert "--only encoder: " in message and "encoder moco_v1, " in message


def test_sbatch_errors(smears, tmp_path, sent, capsys, monkeypatch):
    argv = [*NARROW, "--data", smears, "--out", tmp_path / "out", "--executor", "slurm"]
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho no such partition >&2; exit 1")
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv)
    assert "encoder moco_v1: no such partition" in message and "submitted" not in message
    (tmp_path / "bin" / "sbatch").write_text(
        SBATCH + 'test $n -lt 3 || { echo "too many jobs" >&2; exit 1; }'
    )
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv)
    assert ": too many jobs; submitted before: 100, 101, 102; once they have ended" in message
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv)
    assert "--executor slurm needs sbatch" in message


def test_mean_std_and_cells():
    assert table.mean_std([1, 2, 3]) == (2, 1) and table.mean_std([4]) == (4, None)
    assert table.cell(58.12, 6.78) == "58.1 (6.8)"
    assert table.cell(58.12, 6.78, 2, 3) == "58.1 (6.8; 2 of 3 runs)"
    assert table.cell(58.12, None, 1, 3) == "58.1 (1 of 3 runs)"


def test_a_single_base_class(little, tmp_path, capsys, monkeypatch):
    """It has no labels to learn from: refused before the work, with the rows that are possible."""
    argv = ["--table", 5, "--data", little, "--out", tmp_path, "--shots", 1, "--tasks", 0]
    argv += ["--base-classes", "nevus", "--rare-classes", "scar", "vessel"]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv)
    assert "maml, relationnet, protonet, daml, srl_simple, srl_distill learn from" in message
    words = message.rpartition("--methods ")[2].split()
    assert words[:2] == ["scratch", "umtra"] and "hybrid" in words
    narrowed = ["--methods", "protonet", "moco_v1"]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv, *narrowed)
    assert message.rstrip().endswith("--methods moco_v1")
    narrowed = ["--methods", "protonet"]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv, *narrowed)
    assert message.rpartition("--methods ")[2].split() == words
    for method in ("srl", "maml", "protonet"):
        error = refused(
            capsys, monkeypatch, f"baselines.{method}", little, "--model-path", tmp_path / method,
            "--base-classes", "nevus", "--rare-classes", "scar", "vessel", "-j", 0,
        )  # fmt: skip
        assert "learns from the labels of at least two base classes" in error


def test_tasks_without_query_images_are_refused_before_the_work(
    little, tmp_path, capsys, monkeypatch
):
    argv = ["--table", 5, "--data", little, "--out", tmp_path, "--shots", 1, "--methods", "moco_v1"]
    argv += ["--base-classes", "nevus", "--rare-classes", "scar", "vessel", "--seeds", 0]
    rows = ["image,group"]
    for name in ("scar", "vessel"):
        images = sorted((little / name).iterdir())
        rows += [f"{name}/{path.name},{name}{min(n, 1)}" for n, path in enumerate(images)]
    (tmp_path / "g.csv").write_text("\n".join(rows))
    argv += ["--group-disjoint", "--groups", tmp_path / "g.csv", "--shots", 2]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv)
    assert "has no query images of" in message


@pytest.mark.parametrize(("flags", "missing"), [
    (["--seeds", 0, 1, "--tasks", 600], None),
    (["--seeds", 0, "--tasks", 600], "moco_v1 1-shot, seed 1"),
    (["--seeds", 0, 1, "--tasks", 0], "moco_v1 1-shot, 600 tasks"),
    (["--seeds", 0, 1, "--tasks", 600, "--shots", 3], "moco_v1 1-shot"),
])  # fmt: skip
def test_a_table_of_less_than_before_is_told(flags, missing, data, tmp_path, capsys):
    argv = ["--table", 5, "--data", data, "--out", tmp_path, "--methods", "moco_v1"]
    argv += [] if "--shots" in flags else ["--shots", 1]
    s = study(*argv, *flags)
    s.root.mkdir(parents=True)
    (s.root / "table5_runs.csv").write_text("method,k_shot,seed\nmoco_v1,1,0\nmoco_v1,1,1\n")
    head, row = "method,k_shot,metric,tasks", "moco_v1,1,accuracy"
    (s.root / "table5.csv").write_text(f"{head}\n{row},600\n{row},\n")
    table.write_table(s, "python -m reproduction")
    printed = capsys.readouterr().out
    assert (f"had more before: {missing};" if missing else "") in printed
    assert bool(missing) == ("had more" in printed)


def test_slurm_options_alone(data, capsys, monkeypatch):
    argv = ["--table", 5, "--data", data, "--slurm", "partition=gpu"]
    message = refused(capsys, monkeypatch, "reproduction.__main__", *argv)
    assert "--slurm takes effect with --executor slurm" in message


def test_a_run_without_its_log_is_told(tmp_path, chain):
    """Its hours are unknown; the table is written all the same. Unfinished ones do not count."""
    argv = ["--table", 5, "--methods", "moco_v1", "--data", tmp_path, "--out", tmp_path, "--epochs"]
    s = study(*argv, 2)
    folder = next(job.folder for job in jobs_of(s) if "encoder" in job.name)
    shutil.copytree(chain.pretrained, folder)
    assert table.made_with(s)[-1].startswith("1 training runs, ")
    longer = study(*argv, 3)
    unfinished = next(job.folder for job in jobs_of(longer) if "encoder" in job.name)
    shutil.copytree(chain.pretrained, unfinished)
    assert table.made_with(longer)[-1].startswith("0 training runs, 0.0 hours")
    (folder / "log.jsonl").unlink()
    assert table.made_with(s)[-1] == "1 training runs (1 without a log), 0.0 hours in total"


def test_wilcoxon_on_the_same_tasks(tmp_path):
    """One method is better on all nine tasks: p = 2 / 2⁹. Without differences p is 1."""
    s = study("--table", 5, "--data", tmp_path, "--out", tmp_path)
    gain = {"hybrid_dic": 0.01, "hybrid": 0.0, "moco_v1": 0.01}
    for number, (method, shot, seed) in enumerate(s.cells()):
        if method in gain:
            folder = s.score_folder(method, shot, seed)
            folder.mkdir(parents=True)
            accuracy = 0.5 + gain[method] * (1 + int(shot) + 0.1 * seed)
            scores = {"accuracy": accuracy, "per_class": {"a": 1, "b": 0, "c": 0}, "average": 0.3}
            (folder / f"test_{number}.json").write_text(json.dumps(scores))
    rows = table.significance(s)
    assert rows[1:] == [["moco_v1", "9", "+0.0 ± 0.0", "1.000"],
                        # Differences of 2, 4 and 6 points plus 0, 0.1 or 0.2: t of 8 degrees of
                        # freedom is 2.306.
                        ["hybrid", "9", "+4.1 ± 1.3", f"{2 / 2**9:.3f}"]]  # fmt: skip


def test_every_method_has_a_model():
    runs = {run_name for run_name, _ in METHODS.values()}
    assert ENCODERS.keys() | META.keys() | STUDENTS.keys() | ON_SUPPORT.keys() == runs


def test_every_row_of_every_table_is_built():
    assert {method for t in read_tables().values() for method in t.methods} <= METHODS.keys()


def test_a_dry_run_on_other_data_than_the_tables(data, tmp_path, capsys, monkeypatch):
    plan = ["--table", 5, "--dry-run", "--datadir"]
    assert "table 5 needs papsmear, but" in refused(
        capsys, monkeypatch, "reproduction.__main__", *plan, data
    )
    call("reproduction.__main__", *plan, tmp_path / "not yet here")


def test_scores_by_the_statistics_of_each_image(capsys):
    """Only the scoring changes, into folders of its own; meta-learning rows stay as they are."""
    plain = commands(capsys, "--table", 5)
    by_image = commands(capsys, "--table", 5, "--norm-statistics", "image")
    assert len(plain) == len(by_image)
    scored = [words[0] == "test.py" and "/meta/" not in str(words) for words in plain]
    assert [words != others for words, others in zip(plain, by_image)] == scored
    for words in (words for words, changed in zip(by_image, scored) if changed):
        assert "--norm-statistics" in words and "/scores_image/" in str(words)
    image = study("--table", 5, "--dry-run", "--norm-statistics", "image")
    assert "statistics of each image" in table.heading(image)
