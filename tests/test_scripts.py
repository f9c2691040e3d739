"""The four scripts as a chain, and invalid commands."""

import csv
import itertools
import json
import shutil

import pytest
import torch

from conftest import TINY, Chain, call, chain_of, refused, shell, states_equal
from datasets import isic2018, open_dataset
from datasets.episode import Task, load_task
from datasets.pseudo import PSEUDO_FILE, load_pseudo_labels, save_pseudo_labels
from moco.checkpoint import CLASSIFIER, load_checkpoint
from trainer.checkpoint import CHECKPOINT


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_as_a_user_types_them(chain, data, tmp_path):
    """Four processes in turn write and print the same as the chain in this process."""
    printed = {}
    for name, argv in chain_of(data, tmp_path).items():
        result = shell(name, *argv)
        assert result.returncode == 0, result.stderr
        printed[name] = result.stdout
    typed = Chain(tmp_path, printed)
    for part in ("a", "labels", "d"):
        found = {path.name for path in (tmp_path / part).iterdir()}
        assert {"log.jsonl"} <= found or part == "labels"
        assert found <= {path.name for path in (chain.root / part).iterdir()}
    for folder, other in ((typed.pretrained, chain.pretrained), (typed.student, chain.student)):
        found, expected = (load_checkpoint(path)["state_dict"] for path in (folder, other))
        assert states_equal(found, expected)
    (task, labels), (expected_task, expected) = map(
        load_pseudo_labels, (typed.labels, chain.labels)
    )
    assert task == expected_task and (labels.probabilities == expected.probabilities).all()
    totals = [[line for line in run.printed["test"].splitlines() if line.startswith("total")]
              for run in (typed, chain)]  # fmt: skip
    assert totals[0] == totals[1] and len(totals[0]) == 1


def test_each_stage_leaves_its_files(chain):
    assert (chain.pretrained / CHECKPOINT).is_file() and not (
        chain.pretrained / CLASSIFIER
    ).exists()
    assert {p.name for p in chain.labels.iterdir()} == {"task.json", "pseudo_labels.npz"}
    assert (chain.student / CHECKPOINT).is_file() and (chain.student / CLASSIFIER).is_file()
    assert not list(chain.root.rglob("*.tmp"))


def test_every_base_image_has_pseudo_labels(chain, data):
    task, labels = load_pseudo_labels(chain.labels)
    base = open_dataset(data).base
    assert labels.ids == base.ids and labels.probabilities.shape == (len(base), 3)
    assert labels.about["teacher"]["arch"] == "conv4"
    assert load_checkpoint(chain.student)["task"] == task.to_dict()


def test_student_is_freshly_initialised(chain, data, tmp_path):
    """Its initial weights are neither the teacher's final nor its initial weights."""
    call("main_moco", data, "--model_path", tmp_path / "a", *TINY, "--epochs", 0)
    call(
        "main_distill", data, "--model_path", tmp_path / "d", "--savedir", chain.labels,
        "--epochs", 0, "-b", 8, "--bn-groups", 2,
    )  # fmt: skip
    name = "query_encoder.backbone.blocks.0.0.weight"
    weights = [
        load_checkpoint(folder)["state_dict"][name]
        for folder in (tmp_path / "a", chain.pretrained, tmp_path / "d")
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(weights[a], weights[b])


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "x"), ("arch", None), ("image_size", -3), ("arch", "foo"), ("schedule", 7)],
)
def test_invalid_teacher_settings(no, chain, data, tmp_path, name, value):
    shutil.copytree(chain.labels, tmp_path / "labels")
    _, labels = load_pseudo_labels(chain.labels)
    labels.about["teacher"][name] = value
    save_pseudo_labels(tmp_path / "labels", labels)
    error = no(*distill(data, tmp_path / "labels", tmp_path / "d"))
    assert f"in {tmp_path / 'labels'} is invalid: " in error
    flag = name.replace("_", "-")
    assert f"--{flag}" in error or (value is None and f"missing setting {flag}" in error)


def test_without_pseudo_labels_the_classifier_learns_nothing(chain, data, tmp_path):
    argv = [data, "--savedir", chain.labels, "-b", 8, "-j", 0, "--bn-groups", 2, "--wd", 0]
    for epochs in (0, 1):
        call(
            "main_distill", *argv, "--model_path", tmp_path / str(epochs), "--epochs", epochs,
            "--no-p-label",
        )  # fmt: skip
    before, after = (load_checkpoint(tmp_path / n)["state_dict"] for n in "01")
    name = "classifier.linear.weight"
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before["queue"], after["queue"])


VARIANTS = [
    *(["--pseudo-label", kind] for kind in ("adaptive-soft", "hard", "soft")),
    *(["--losses", kinds] for kinds in ("cls", "con+reg")),
    ["--cls-loss", "released"],
    ["--alpha", 0.4],
    *(["--correction", "dic", "--dic-interval", 1, "--dic-dispersion", kind, "--dic-gamma", 0.5]
      for kind in ("normalized", "norm", "raw")),
    ["--correction", "ddl"],
    ["--correction", "dic", "--dic-interval", 1, "--dic-gamma", 0.1],
]  # fmt: skip


def test_every_variant_trains_its_own_student(chain, data, tmp_path):
    """After two epochs from the same initialisation on the same views, all students differ."""
    argv = [data, "--savedir", chain.labels, "-j", 0, "--lr", 0.1, "--epochs", 2]

    def train(number, *variant):
        call("main_distill", *argv, "--model_path", tmp_path / str(number), *variant)
        state = load_checkpoint(tmp_path / str(number))["state_dict"]
        names = ("query_encoder.head.weight", "classifier.linear.weight")
        return torch.cat([state[name].flatten() for name in names])

    found = {str(v): train(number, *v) for number, v in enumerate([[], *VARIANTS])}
    for (variant, a), (other, b) in itertools.combinations(found.items(), 2):
        assert a.isfinite().all() and not torch.equal(a, b), (variant, other)
    # Adaptive labels with alpha 0 are plain hard labels.
    assert torch.equal(train("plain", "--alpha", 0), found[str(["--pseudo-label", "hard"])])


def test_student_inherits_mixed_precision(chain, data, tmp_path):
    a, labels, d = tmp_path / "a", tmp_path / "labels", tmp_path / "d"
    call("main_moco", data, "--model_path", a, *TINY, "--epochs", 1, "--amp")
    call("generate_pseudo", "--datadir", data, "--resume", a, "--savedir", labels, "-j", 0)
    call("main_distill", data, "--savedir", labels, "--model_path", d, "-j", 0)
    exact, mixed = (load_checkpoint(folder)["state_dict"] for folder in (chain.pretrained, a))
    assert mixed.keys() == exact.keys()
    assert all(mixed[name].dtype == exact[name].dtype for name in exact)
    assert load_checkpoint(d)["args"]["amp"] is True

    def first_loss(folder):
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        return next(line["loss"] for line in lines if line.get("epoch") == 1)

    difference = abs(first_loss(a) - first_loss(chain.pretrained))
    assert 0 < difference < 0.1


def test_dic_measures_when_due_and_logs_the_temperatures_used(chain, data, tmp_path):
    call(
        "main_distill", data, "--savedir", chain.labels, "-j", 0, "--epochs", 5, "--model_path",
        tmp_path, "--correction", "dic", "--dic-interval", 2, "--dic-gamma", 0.4,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    names = [f"temperature_{name}" for name in load_task(chain.labels).classes]
    taus = [[line[name] for name in names] for line in lines]
    assert taus[0] == taus[1] == [1, 1, 1]  # before the first measurement
    assert taus[2] == taus[3] and taus[2] != taus[0]
    assert taus[4] not in (taus[0], taus[2])
    for tau in taus[2:]:
        assert max(tau) == 1 and min(tau) >= 0.6
    saved = load_checkpoint(tmp_path)["state_dict"]["class_temperatures"]
    assert saved.tolist() == taus[4]


def test_ddl_uses_the_counts_of_hard_labels(chain, data, tmp_path):
    argv = [data, "--savedir", chain.labels, "--model_path", tmp_path, "-j", 0, "--epochs", 1]
    call("main_distill", *argv, "--correction", "ddl")
    _, labels = load_pseudo_labels(chain.labels)
    counts = [int((labels.hard() == n).sum()) for n in range(3)]
    found = load_checkpoint(tmp_path)["state_dict"]["class_temperatures"].tolist()
    expected = [1 + 0.1 * (count - max(counts)) / sum(counts) for count in counts]
    assert found == pytest.approx(expected)


def test_a_student_without_a_trained_classifier(no, chain, data, tmp_path):
    for number, variant in enumerate((["--losses", "con+reg"], ["--no-p-label"])):
        folder = tmp_path / str(number)
        call(
            "main_distill", data, "--savedir", chain.labels, "--model_path", folder, "--epochs", 0,
            *variant,
        )  # fmt: skip
        error = no("test", data, "--resume", folder, "--load_cla")
        assert " ".join(variant) in error and "no trained classifier" in error
        call("test", data, "--resume", folder, "-j", 0)


def test_query_set_is_all_remaining_rare_images(chain, data):
    scores = json.loads((chain.student / "test_direct_3way_2shot_seed0.json").read_text())
    with open(chain.student / "test_direct_3way_2shot_seed0.csv") as file:
        rows = list(csv.DictReader(file))
    rare, task = open_dataset(data).rare, load_task(chain.labels)
    support = {i for ids in task.support_ids for i in ids}
    assert {row["image"] for row in rows} == set(rare.ids) - support
    assert len(rows) == len(rare) - 6 == sum(map(sum, scores["confusion"]))
    truth = dict(zip(rare.ids, rare.labels))
    for row in rows:
        assert row["truth"] == rare.classes[truth[row["image"]]]
        p = {name: float(row[f"p_{name}"]) for name in rare.classes}
        assert sum(p.values()) == pytest.approx(1, abs=1e-5)
        assert p[row["prediction"]] == max(p.values())
    right = sum(row["truth"] == row["prediction"] for row in rows)
    assert scores["accuracy"] == pytest.approx(right / len(rows))
    assert f"{scores['macro_f1']:.1%}" in chain.printed["test"]
    assert Task.from_dict(scores["task"]) == task


def test_stage_a_is_scored_on_the_task_of_savedir_or_a_drawn_one(chain, data, tmp_path):
    common = [data, "--resume", chain.pretrained, "-j", 0, "--output", tmp_path]
    call("test", *common, "--savedir", chain.labels)
    call("test", *common, "--seed", 4, "--k_shot", 1)
    found = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert found.keys() == {"test_lr_3way_2shot_seed0", "test_lr_3way_1shot_seed4"}
    call("test", *common)  # the defaults in its help
    assert (tmp_path / "test_lr_3way_5shot_seed0.json").is_file()
    assert found["test_lr_3way_2shot_seed0"]["task"] == load_task(chain.labels).to_dict()


def test_the_student_by_logistic_regression(chain, data, tmp_path):
    call("test", data, "--resume", chain.student, "-j", 0, "--output", tmp_path)
    scores = json.loads((tmp_path / "test_lr_3way_2shot_seed0.json").read_text())
    assert scores["classifier"] == "lr" and scores["task"] == load_task(chain.labels).to_dict()


def test_predicting_images_without_labels(no, chain, data, tmp_path):
    """Copies of query images under other names get the same probabilities as in scoring."""
    with open(chain.student / "test_direct_3way_2shot_seed0.csv") as file:
        scored = list(csv.DictReader(file))[:5]
    rare = open_dataset(data).rare
    path_of = dict(zip(rare.ids, rare.paths))
    new = tmp_path / "new patients"
    (new / "ward").mkdir(parents=True)
    (new / "notes.txt").write_text("not an image")
    for number, row in enumerate(scored):
        shutil.copy(path_of[row["image"]], new / ("ward" if number else ".") / f"{number}.JPG")
    out = ["--output", tmp_path / "out", "-j", 0]
    student = ["--resume", chain.student, "--load_cla", "--predict", new]
    call("test", *student, *out)
    table = tmp_path / "out" / "predict_new patients_direct_3way_2shot_seed0.csv"
    with open(table, encoding="utf-8-sig") as file:
        found = {row["image"]: row for row in csv.DictReader(file)}
    assert found.keys() == {"0.JPG", *(f"ward/{n}.JPG" for n in range(1, 5))}
    for number, row in enumerate(scored):
        new_row = found[f"ward/{number}.JPG" if number else "0.JPG"]
        assert "truth" not in new_row and new_row["prediction"] == row["prediction"]
        for name in rare.classes:
            assert float(new_row[f"p_{name}"]) == pytest.approx(float(row[f"p_{name}"]), abs=1e-5)
    # Fitting a classifier on the support set needs the data folder.
    assert "data folder" in no("test", *student[:2], *student[3:])
    assert "data folder" in no("test", *student[:3])
    call("test", data, *student[:2], *student[3:], *out)
    assert (tmp_path / "out" / "predict_new patients_lr_3way_2shot_seed0.csv").is_file()
    (tmp_path / "empty").mkdir()
    assert "no images in" in no("test", *student[:-1], tmp_path / "empty")
    call("test", *student, *out)  # the same again: already done


def test_labelling_is_reproducible(chain, data, tmp_path):
    call(
        "generate_pseudo", "--resume", chain.pretrained / CHECKPOINT, "--datadir", data,
        "--savedir", tmp_path, "--k_shot", 2, "-j", 0, "-b", 5,
    )  # fmt: skip
    (task, labels), (other, again) = map(load_pseudo_labels, (chain.labels, tmp_path))
    assert task == other
    assert abs(labels.probabilities - again.probabilities).max() < 1e-4


# ---- errors before any training: one line and exit code 2 ----


@pytest.fixture
def no(capsys, monkeypatch):
    """Run a command that must fail; return its error line."""
    return lambda name, *argv: refused(capsys, monkeypatch, name, *argv)


def moco(data, out, *more):
    return ["main_moco", data, "--model_path", out, *TINY, "--epochs", 1, *more]


def distill(data, labels, out, *more):
    small = ["--epochs", 1, "-b", 8, "-j", 0, "--bn-groups", 2]
    return ["main_distill", data, "--savedir", labels, "--model_path", out, *small, *more]


def test_missing_things(no, chain, data, tmp_path):
    out = tmp_path / "out"
    assert "does not exist: " in no(*moco(tmp_path / "nowhere", out))
    assert "no checkpoint at" in no(*moco(data, out, "--resume", tmp_path / "nothing"))
    assert "no checkpoint at" in no("test", data, "--resume", tmp_path)
    assert "no pseudo labels at" in no(*distill(data, tmp_path, out))
    labelling = ["--resume", tmp_path, "--datadir", data, "--savedir", out]
    assert "no checkpoint at" in no("generate_pseudo", *labelling)
    assert not out.exists()


def test_images_that_cannot_be_decoded(no, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    base = open_dataset(tmp_path / "data").base
    for path in base.paths[3:5]:
        path.write_bytes(path.read_bytes()[:300])
    error = no(*moco(tmp_path / "data", tmp_path / "out"))
    assert "2 of 35 images" in error and all(str(path) in error for path in base.paths[3:5])
    assert not (tmp_path / "out").exists()


def test_images_of_every_set_are_named(no, chain, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    found, task = open_dataset(tmp_path / "data"), load_task(chain.labels)
    bad = [task.support(found.rare).paths[0], task.query(found.rare).paths[0], found.base.paths[0]]
    for path in bad:
        path.write_bytes(b"")
    there = [tmp_path / "data", "--resume", chain.pretrained, "--output", tmp_path]
    error = no("test", *there, "--savedir", chain.labels)
    assert "2 of 25 images" in error and str(bad[0]) in error and str(bad[1]) in error
    labelling = ["--resume", chain.pretrained, "--savedir", tmp_path / "labels", "--k_shot", 2]
    error = no("generate_pseudo", "--datadir", tmp_path / "data", *labelling)
    assert "2 of 41 images" in error and str(bad[0]) in error and str(bad[2]) in error
    shutil.copy(task.support(open_dataset(data).rare).paths[0], bad[0])
    error = no("generate_pseudo", "--datadir", tmp_path / "data", *labelling)
    assert "1 of 35 images" in error and str(bad[2]) in error


def test_batches_that_do_not_fit(no, data, tmp_path):
    assert "--moco-k 36" in no(*moco(data, tmp_path, "--moco-k", 36))
    assert "e.g. 40" in no(*moco(data, tmp_path, "--moco-k", 36))
    assert "BatchNorm groups" in no(*moco(data, tmp_path, "--bn-groups", 8))
    error = no(*moco(data, tmp_path, "--multiprocessing-distributed", "--nproc", 3))
    assert "divisible by 3 processes" in error
    assert "the 35 base images" in no(*moco(data, tmp_path, "-b", 64, "--moco-k", 64))


def test_other_backbones_and_stages(no, chain, data, tmp_path):
    a, d, labels = chain.pretrained, chain.student, chain.labels
    conflict = "--arch resnet12 conflicts with"
    assert conflict in no("test", data, "--resume", a, "--arch", "resnet12")
    assert conflict in no(*distill(data, labels, tmp_path, "--arch", "resnet12"))
    labelling = ["generate_pseudo", "--datadir", data, "--savedir", tmp_path / "l"]
    assert conflict in no(*labelling, "--resume", a, "--arch", "resnet12")
    assert "is a checkpoint of stage (d)" in no(*labelling, "--resume", d)
    assert "is a checkpoint of stage (d)" in no(*moco(data, tmp_path, "--resume", d))
    assert "is a checkpoint of stage (a)" in no(*distill(data, labels, tmp_path, "--resume", a))
    assert "has no trained classifier" in no("test", data, "--resume", a, "--load_cla")


def test_settings_that_conflict_with_the_files(no, chain, data, tmp_path):
    resume = ["--resume", chain.pretrained]
    assert "--moco-k 40 conflicts with" in no(*moco(data, tmp_path, *resume, "--moco-k", 40))
    assert "--k-shot 5" in no(*distill(data, chain.labels, tmp_path, "--k_shot", 5))
    assert "--n-way 2" in no("test", data, "--resume", chain.student, "--n_way", 2)
    assert "--seed 3" in no("test", data, "--resume", chain.student, "--seed", 3)


def test_a_head_that_is_not_there(no, data, tmp_path):
    error = no(*moco(data, tmp_path, "--mlp", "--moco-dim", 0))
    assert "--mlp: --moco-dim 0 leaves out the head" in error
    error = no("baselines.srl", data, "--model-path", tmp_path, "--distill-weight", 1)
    assert "--distill-weight: no effect without --teacher" in error


def test_impossible_tasks(no, chain, data, tmp_path):
    labelling = ["--resume", chain.pretrained, "--datadir", data, "--savedir", tmp_path]
    assert "[2, 3], got 4" in no("generate_pseudo", *labelling, "--n_way", 4)
    error = no("generate_pseudo", *labelling, "--k_shot", 7)
    assert "[1, 6], got 7" in error and "isic2018 has DF 7, AKIEC 10, VASC 8" in error


def test_pseudo_labels_of_another_data_folder(no, chain, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    table = tmp_path / "data" / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv"
    lines = table.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if ",0.0,1.0,0.0,0.0,0.0,0.0,0.0" in line)
    table.write_text("\n".join(lines[:row] + lines[row + 1 :]) + "\n")
    error = no(*distill(tmp_path / "data", chain.labels, tmp_path / "out"))
    assert "isic2018 (NV 16" in error and "isic2018 (NV 15" in error
    resumed = moco(tmp_path / "data", tmp_path / "out", "--resume", chain.pretrained)
    assert "was trained on isic2018 (NV 16" in no(*resumed)


def test_nothing_is_overwritten(no, chain, data):
    before = snapshot(chain.root)
    call(*moco(data, chain.pretrained))  # has more epochs than this command asks for
    error = no(*moco(data, chain.pretrained, "--seed", 1))
    assert "--seed 1 conflicts with" in error and "; --overwrite starts the run again" in error
    assert "--lr 0.5 conflicts with" in no(*distill(data, chain.labels, chain.student, "--lr", 0.5))
    other = moco(data, chain.pretrained, "--resume", chain.student)
    assert "already holds a run" in no(*other)
    labelling = ["--resume", chain.pretrained, "--datadir", data, "--savedir", chain.labels]
    assert "would be overwritten" in no("generate_pseudo", *labelling)
    again = ["--resume", chain.student, "--load_cla"]
    assert "would be overwritten" in no("test", data, *again)
    assert snapshot(chain.root) == before


def test_finished_commands_are_not_repeated(chain, data, tmp_path, capsys, no):
    """A repeated command exits early, or finishes if it was killed between its two files."""
    labels, scores = tmp_path / "labels", tmp_path / "scores"
    labelling = ["generate_pseudo", "--resume", chain.pretrained, "--datadir", data,
                 "--savedir", labels, "--k_shot", 2]  # fmt: skip
    testing = ["test", data, "--resume", chain.student, "--load_cla", "--output", scores]
    for command, folder in ((labelling, labels), (testing, scores)):
        call(*command)
        printed = capsys.readouterr().out
        before = snapshot(tmp_path)
        call(*command, "-b", 7, "--no-cache")  # runtime settings do not matter
        again = capsys.readouterr().out
        assert "already done: " in again and snapshot(tmp_path) == before
        assert [line for line in printed.splitlines() if line.startswith("total")] == [
            line for line in again.splitlines() if line.startswith("total")
        ]
        assert "would be overwritten" in no(*command, "--augnum", 3)
        assert "would be overwritten" in no(*command, "--amp")  # float32 without a GPU
        last = folder / PSEUDO_FILE if folder == labels else next(folder.glob("*.json"))
        last.unlink()
        call(*command)
        assert last.exists() and "already done" not in capsys.readouterr().out
    (labels / PSEUDO_FILE).unlink()
    assert "task.json would be overwritten" in no(*labelling, "--seed", 1)


def test_only_more_epochs_are_no_reason_to_stop(chain, data, tmp_path, capsys, no):
    """The same commands go on after stage (a) has trained on; anything else is named."""
    a, labels, scores = tmp_path / "a", tmp_path / "labels", tmp_path / "scores"
    shutil.copytree(chain.pretrained, a)
    commands = (
        ["generate_pseudo", "--resume", a, "--datadir", data, "--savedir", labels, "--k_shot", 2],
        ["test", data, "--resume", a, "--k_shot", 2, "--output", scores],
        ["test", data, "--resume", a, "--k_shot", 2, "--output", scores, "--tasks", 2],
    )
    for command in commands:
        call(*command, "-j", 0)
        error = no(*command, "--augnum", 3)
        assert "would be overwritten (--augnum 5 then, --augnum 3 now)" in error
    error = no(*commands[0], "--k_shot", 1)
    assert "(another task, --k-shot 2 then, --k-shot 1 now)" in error
    call(*moco(data, a), "--epochs", 3)
    for command in commands:
        assert "a checkpoint of 2 epochs then, of 3 now" in no(*command, "--augnum", 3)
        capsys.readouterr()
        call(*command, "-j", 0)
        printed = capsys.readouterr().out
        assert "of 2 epochs then, of 3 now; it is made again" in printed and "written" in printed
        call(*command, "-j", 0)
        assert "already done" in capsys.readouterr().out
    assert load_pseudo_labels(labels)[1].about["epoch"] == 3
    found = [json.loads(path.read_text())["epoch"] for path in scores.glob("*.json")]
    assert found == [3, 3]
    # Another training of as many epochs.
    (file,) = scores.glob("test_*.json")
    made_by = '"checkpoint_made_by": {'
    file.write_text(file.read_text().replace(made_by, made_by + '"a": 1,'))
    assert "a checkpoint of 3 epochs then, another of 3 now" in no(*commands[1], "-j", 0)


def test_overwriting_on_request(data, tmp_path):
    call(*moco(data, tmp_path))
    call(*moco(data, tmp_path, "--seed", 1, "--overwrite"))
    assert load_checkpoint(tmp_path)["args"]["seed"] == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_file_where_a_folder_should_be(no, chain, data, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder" in no(*moco(data, folder))
        labelling = ["--resume", chain.pretrained, "--datadir", data, "--savedir", folder]
        assert "is not a folder" in no("generate_pseudo", *labelling)
        assert "is not a folder" in no(
            "test", data, "--resume", chain.pretrained, "--output", folder
        )
    assert "no dataset recognised" in no(*moco(tmp_path / "file", tmp_path / "out"))


def test_class_temperatures_stay_positive(no, chain, data, tmp_path):
    argv = distill(data, chain.labels, tmp_path, "--correction", "ddl", "--dic-scale", 3)
    assert "--dic-gamma 0.4 times --dic-scale 3.0" in no(*argv, "--dic-gamma", 0.4)


def test_checkpoints_of_baselines_are_known(no, data, tmp_path):
    argv = [data, "--model-path", tmp_path, "--arch", "conv4", "--image-size", 32, "-j", 0]
    call("baselines.simclr", *argv, "--epochs", 0)
    labelling = ["generate_pseudo", "--datadir", data, "--savedir", tmp_path / "labels"]
    assert "is a checkpoint of SimCLR" in no(*labelling, "--resume", tmp_path)
