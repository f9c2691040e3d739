"""The meta-learning baselines as a whole: each learns, is scored without transduction, resumes."""

import colorsys
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from conftest import call, refused, states_equal
from datasets import open_dataset
from datasets.episode import draw_task
from moco.checkpoint import load_checkpoint, query_encoder
from moco.config import STAGES
from moco.meta import MetaLearner, adaptations
from networks import CONVOLUTIONAL, TRANSFORMERS
from trainer.signals import Stopped, Watch

METHODS = [name for name, stage in STAGES.items() if stage.adapts]
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
BASE, RARE = {"red": 0.0, "lime": 0.25, "cyan": 0.5, "purple": 0.75}, {
    "orange": 0.125, "mint": 0.375, "blue": 0.625,
}  # fmt: skip
SUPERVISED = ("maml", "daml", "relationnet", "protonet")
SMALL = "--arch conv4 --image-size 32 -j 0 --schedule 1000".split()


def test_all_seven_are_here():
    assert {*METHODS} >= {*SUPERVISED, "umtra", "cactus_maml", "cactus_protonet"}


@pytest.fixture(scope="module")
def hues(tmp_path_factory):
    """A data folder in which classes are hues: 4 base and 3 rare ones, 12 noisy images each."""
    root = tmp_path_factory.mktemp("hues")
    generator = np.random.default_rng(0)
    for name, hue in (BASE | RARE).items():
        (root / name).mkdir()
        for number in range(12):
            colour = np.array(colorsys.hsv_to_rgb(hue, 0.7, generator.uniform(0.5, 1)))
            pixels = 255 * colour + generator.normal(0, 40, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                root / name / f"{number}.png"
            )
    return root


@pytest.fixture(scope="module")
def encoder(hues, tmp_path_factory):
    """Stage (a)'s encoder, untrained."""
    folder = tmp_path_factory.mktemp("moco")
    flags = [*SMALL, "-b", 8, "--moco-k", 32, "--bn-groups", 2, "--epochs", 0]
    call("main_moco", hues, "--model-path", folder, *flags, *classes())
    return folder


def classes():
    return ["--base-classes", *BASE, "--rare-classes", *RARE]


def flags_of(method, encoder, named=None):
    flags = [*SMALL, *(named or classes()), "--query", 3]
    flags += ["--k-shot", 2] if method in SUPERVISED else []
    flags += ["--encoder", encoder, "--partitions", 3] if "cactus" in method else []
    if "inner_steps" in STAGES[method].settings.fields():
        flags += ["-b", 2, "--inner-steps", 3, "--test-steps", 10]
    return flags


def train(method, data, folder, *flags):
    call(f"baselines.{method}", data, "--model-path", folder, *flags)
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def trained(hues, encoder, tmp_path_factory):
    """The checkpoint folder of each method, trained when first asked for."""
    folders = {}

    def of(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method)
            epochs = 30 if method == "umtra" else 15
            train(method, hues, folders[method], *flags_of(method, encoder), "--epochs", epochs)
        return folders[method]

    return of


def tasks(data, k_shot=2, number=5):
    rare = open_dataset(data, list(BASE), list(RARE)).rare
    return rare, [draw_task(rare, 3, k_shot, seed) for seed in range(number)]


@EVERY_METHOD
def test_learns(method, hues, trained):
    """The training loss falls, and new classes are recognised far above chance."""
    rare, drawn = tasks(hues)
    learner = MetaLearner(load_checkpoint(trained(method)))
    embedded = learner.embed(rare)
    row_of = {name: row for row, name in enumerate(rare.ids)}
    found = []
    for task in drawn:
        support, query = task.support(rare), task.query(rare)
        classify = learner.adapt(embedded[[row_of[i] for i in support.ids]], support.labels)
        p = classify(embedded[[row_of[i] for i in query.ids]])
        assert p.shape == (len(query), 3) and p.sum(axis=1) == pytest.approx(1, abs=1e-5)
        found.append((p.argmax(axis=1) == query.labels).mean())
    lines = (trained(method) / "log.jsonl").read_text().splitlines()[1:]
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(found) > 0.65
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


@EVERY_METHOD
def test_no_transduction(method, hues, trained):
    """A query's prediction is the same bit for bit alone, in any batch and in any order."""
    rare, (task, *_) = tasks(hues)
    learner = MetaLearner(load_checkpoint(trained(method)), batch_size=8)
    support, query = task.support(rare), task.query(rare)
    p = dict(zip(query.ids, learner.predict(query, support)))
    assert len({row.tobytes() for row in p.values()}) > len(query) // 2
    shuffled = np.random.default_rng(0).permutation(query.ids).tolist()
    for part in (shuffled, sorted(query.ids), query.ids[:1], shuffled[3:9], list(query.ids[20:])):
        found = learner.predict(query.take(part), support)
        assert all(np.array_equal(row, p[name]) for name, row in zip(part, found))
    classify = learner.adapt(learner.embed(support), support.labels)
    found = classify(learner.embed(query.take(shuffled)))
    assert all(np.array_equal(row, p[name]) for name, row in zip(shuffled, found))


@EVERY_METHOD
def test_a_diverged_model_is_refused(method, hues, trained):
    """On one task and on many: not scores of NaN."""
    checkpoint = load_checkpoint(trained(method))
    for weight in checkpoint["state_dict"].values():
        if weight.ndim == 4:
            weight.mul_(1e38)
    learner = MetaLearner(checkpoint)
    rare, (task, *_) = tasks(hues)
    with pytest.raises(InputError, match="NaN or Inf"):
        learner.predict(task.query(rare), task.support(rare))
    with pytest.raises(InputError, match="NaN or Inf"):
        adaptations(learner, rare)(task.support(rare), task.query(rare))


def test_batch_statistics_of_the_queries_would_be_noticed(hues, trained):
    """The test above would fail with them."""
    rare, (task, *_) = tasks(hues)
    learner = MetaLearner(load_checkpoint(trained("maml")), batch_size=8)
    support = torch.from_numpy(learner.embed(task.support(rare)))
    query = torch.from_numpy(learner.embed(task.query(rare)))
    adapted = learner.network.adapt(support, torch.tensor(task.support(rare).labels))
    together = adapted.train()(query[:8])
    assert (together[:1] - adapted(torch.cat([query[:1], query[8:15]]))[:1]).abs().max() > 1e-3


@EVERY_METHOD
def test_scored_by_the_script(method, hues, trained, tmp_path, capsys):
    command = [hues, "--resume", trained(method), "--k-shot", 2, "--seed", 1, "-j", 0]
    call("test", *command, "--output", tmp_path)
    assert "classifier: adapted" in capsys.readouterr().out
    scores = json.loads((tmp_path / "test_adapted_3way_2shot_seed1.json").read_text())
    assert sum(map(sum, scores["confusion"])) == 3 * 12 - 6 and scores["accuracy"] > 0.65
    assert scores["classifier"] == "adapted" and scores["training"]["stage"] == method
    rows = (tmp_path / "test_adapted_3way_2shot_seed1.csv").read_text().splitlines()
    assert len(rows) == 1 + 30


@EVERY_METHOD
def test_many_tasks(method, hues, trained, tmp_path, capsys):
    """Each task's score is the one that --seed gives."""
    command = [hues, "--resume", trained(method), "--k-shot", 2, "-j", 0, "--output", tmp_path]
    call("test", *command, "--tasks", 3)
    assert "3 2-shot tasks; classifier: adapted" in capsys.readouterr().out
    rows = (tmp_path / "tasks_adapted_3way_2shot_3tasks.csv").read_text().splitlines()
    many = [dict(zip(rows[0].split(","), row.split(","))) for row in rows[1:]]
    call("test", *command, "--seed", 1)
    one = json.loads((tmp_path / "test_adapted_3way_2shot_seed1.json").read_text())
    assert float(many[1]["accuracy"]) == pytest.approx(one["accuracy"], abs=1e-4)


def test_only_an_encoder_that_is_not_adapted_can_be_used_alone(hues, trained):
    assert query_encoder(load_checkpoint(trained("protonet")))(torch.rand(2, 3, 32, 32)).shape[1]
    with pytest.raises(InputError, match="MAML.* adapts to each task"):
        query_encoder(load_checkpoint(trained("maml")))


def test_unlabelled_images_are_predicted(hues, trained, tmp_path):
    command = [hues, "--resume", trained("maml"), "--k-shot", 2, "-j", 0, "--output", tmp_path]
    call("test", *command, "--predict", hues / "blue")
    (file,) = tmp_path.glob("predict_*.csv")
    assert len(file.read_text().splitlines()) == 1 + 12


@pytest.mark.parametrize(
    "method, views",
    [*((name, "pil") for name in METHODS), ("protonet", "batch"), ("umtra", "batch")],
)
def test_stopped_within_an_epoch_it_resumes_exactly(
    method, views, hues, encoder, tmp_path, monkeypatch
):
    flags = [*flags_of(method, encoder), "-b", 1, "--epochs", 2, "--views", views]
    flags += ["--schedule", 1]
    whole = train(method, hues, tmp_path / "whole", *flags)
    left = [0, signal.SIGTERM]
    monkeypatch.setattr(Watch, "action", lambda self: left.pop(0) if left else 0)
    with pytest.raises(Stopped):
        train(method, hues, tmp_path / "stopped", *flags)
    half = load_checkpoint(tmp_path / "stopped")
    assert (half["epoch"], (half["part"] or {}).get("steps")) in ((0, 2), (1, None))
    resumed = train(method, hues, tmp_path / "stopped", *flags)
    assert states_equal(resumed["state_dict"], whole["state_dict"])
    states = [checkpoint["optimizer"]["state"].values() for checkpoint in (resumed, whole)]
    assert all(states_equal(a, b) for a, b in zip(*states)) and len(list(states[0])) > 8
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "stopped")]
    losses = [[json.loads(line).get("loss") for line in log.splitlines()] for log in logs]
    assert losses[0][1:] == [loss for loss in losses[1] if loss is not None]


@pytest.mark.parametrize(
    ("method", "flags", "expected"),
    [
        ("maml", ["--k-shot", 12], "--k-shot 12: an episode needs a query image"),
        ("maml", ["--knn-every", 1], "--knn-every"),
        ("maml", ["--compile"], "--compile"),
        ("maml", ["--order", 3], "--order: must be in [1, 2]"),
        ("umtra", ["--n-way", 60], "--n-way 60: there are 48 classes"),
        ("protonet", ["--episode-way", 5], "--episode-way must be in [2, 4]"),
        ("cactus_maml", ["--clusters", 48], "reduce --clusters"),
        ("cactus_protonet", ["--encoder", "nowhere"], "no checkpoint at nowhere"),
        ("maml", ["--multiprocessing-distributed"], "--multiprocessing-distributed"),
    ],
)
def test_refusals(method, flags, expected, hues, encoder, tmp_path, capsys, monkeypatch):
    argv = [hues, "--model-path", tmp_path, *flags_of(method, encoder), "--epochs", 1, *flags]
    assert expected in refused(capsys, monkeypatch, f"baselines.{method}", *argv)


@pytest.mark.parametrize("flags", [[], ["--detect-anomaly"]])
@pytest.mark.parametrize("method", ["maml", "protonet"])
def test_nan_ends_a_run_with_the_images(method, flags, hues, encoder, tmp_path):
    flags = [*flags_of(method, encoder), "-b", 1, "--epochs", 3, "--lr", 1e30, *flags]
    with pytest.raises(
        InputError, match=r"epoch \d, step \d: .*for images .*(red|lime|cyan|purple)"
    ):
        train(method, hues, tmp_path, *flags)
    assert load_checkpoint(tmp_path)["epoch"] == 0


def test_another_task_than_trained_for(hues, trained, capsys, monkeypatch):
    for method, flags, expected in (
        ("maml", ["--k-shot", 2, "--n-way", 2], "--n-way 2"),
        ("relationnet", ["--k-shot", 3], "trained with --k-shot 2"),
        ("protonet", ["--load-cla"], "adapts to the support set by itself"),
        ("protonet", ["--normalize", "--augnum", 7], "--augnum, --normalize: no effect"),
    ):
        argv = [hues, "--resume", trained(method), "-j", 0, *flags]
        assert expected in refused(capsys, monkeypatch, "test", *argv)
    call("test", hues, "--resume", trained("protonet"), "--k-shot", 3, "--n-way", 2, "-j", 0)


def test_more_classes_than_there_are_to_train_on(hues, tmp_path):
    """As in OCT: the head starts at zero, episodes have fewer classes, tasks any number."""
    flags = [*SMALL, "--base-classes", "red", "lime", "--rare-classes", *RARE, "-b", 1]
    flags += ["--k-shot", 2, "--query", 3, "--epochs", 5]
    checkpoint = train("maml", hues, tmp_path, *flags)
    assert checkpoint["args"]["zero_head"] and checkpoint["args"]["n_way"] == 3
    assert not checkpoint["state_dict"]["classifier.linear.weight"].any()
    for n_way in (2, 3):
        call("test", hues, "--resume", tmp_path, "--k-shot", 2, "--n-way", n_way, "-j", 0)
        scores = json.loads((tmp_path / f"test_adapted_{n_way}way_2shot_seed0.json").read_text())
        assert scores["accuracy"] > 1.5 / n_way


@pytest.mark.parametrize("method", ["umtra", "cactus_maml", "cactus_protonet"])
def test_labels_are_not_read(method, hues, tmp_path):
    """Training on base images with other labels gives the same weights."""
    rare = [(path, path.parent.name) for name in RARE for path in sorted((hues / name).iterdir())]
    base = [path for name in BASE for path in sorted((hues / name).iterdir())][::3]
    found = []
    for first in (4, 10):  # images of the first class; the order of the images is the same
        rows = [(path, "a" if n < first else "b") for n, path in enumerate(sorted(base))]
        table = tmp_path / f"{first}.csv"
        table.write_text("path,label\n" + "".join(f"{p},{x}\n" for p, x in rows + rare))
        named = ["--base-classes", "a", "b", "--rare-classes", *RARE]
        moco, folder = tmp_path / f"moco{first}", tmp_path / f"out{first}"
        tiny = ["-b", 8, "--moco-k", 32, "--bn-groups", 2, "--epochs", 0]
        call("main_moco", table, "--model-path", moco, *SMALL, *tiny, *named)
        flags = [*flags_of(method, moco, named), "-b", 1, "--epochs", 1]
        found.append(train(method, table, folder, *flags))
    assert found[0]["base"] != found[1]["base"]
    assert states_equal(*(checkpoint["state_dict"] for checkpoint in found))


@pytest.mark.parametrize("arch", ["conv4_released", "resnet12"])
@pytest.mark.parametrize("method", ["maml", "relationnet"])
def test_other_backbones(arch, method, hues, encoder, tmp_path):
    flags = [*flags_of(method, encoder), "-b", 1, "--epochs", 1, "--arch", arch]
    flags += ["--k-shot", 1, "--query", 1]
    order = ["--order", 2, "--inner-steps", 1, "--test-steps", 1] if method == "maml" else []
    checkpoint = train(method, hues, tmp_path, *flags, *order)
    if arch == "resnet12":  # dropout and DropBlock are off
        assert not checkpoint["state_dict"]["query_encoder.backbone.blocks.2.drop.steps"]
    call("test", hues, "--resume", tmp_path, "--k-shot", 1, "-j", 0)
    assert (tmp_path / "test_adapted_3way_1shot_seed0.json").exists()


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
@EVERY_METHOD
def test_networks_of_libraries(method, arch, hues, encoder, tmp_path):
    """Each trains an epoch and is scored; relation networks need one whose map is at hand."""
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    elif method == "relationnet":
        arch = "torchvision/resnet18"
    flags = [*flags_of(method, encoder), "-b", 1, "--epochs", 1, "--arch", arch]
    checkpoint = train(method, hues, tmp_path, *flags)
    assert checkpoint["epoch"] == 1 and checkpoint["args"]["arch"] == arch
    call("test", hues, "--resume", tmp_path, "--k-shot", 2, "-j", 0)
    scores = json.loads((tmp_path / "test_adapted_3way_2shot_seed0.json").read_text())
    assert sum(map(sum, scores["confusion"])) == 30


@pytest.mark.parametrize("method", ["maml", "protonet"])
def test_transformers(method, hues, encoder, tmp_path):
    """They have no BatchNorm, whose statistics MAML would replace."""
    flags = [*flags_of(method, encoder), "-b", 1, "--epochs", 1]
    train(method, hues, tmp_path, *flags, "--arch", TRANSFORMERS[0])
    call("test", hues, "--resume", tmp_path, "--k-shot", 2, "-j", 0)


@pytest.mark.parametrize("arch", [CONVOLUTIONAL[0], TRANSFORMERS[0]])
def test_relation_networks_need_a_map(arch, hues, encoder, tmp_path, capsys, monkeypatch):
    argv = [hues, "--model-path", tmp_path, *flags_of("relationnet", encoder), "--arch", arch]
    message = refused(capsys, monkeypatch, "baselines.relationnet", *argv)
    assert f"--arch {arch} has no map of its features" in message
    assert not (tmp_path / "checkpoint.pth.tar").exists()


def test_several_processes_are_refused(hues, encoder, tmp_path, capsys, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    argv = [hues, "--model-path", tmp_path, *flags_of("maml", encoder)]
    message = refused(capsys, monkeypatch, "baselines.maml", *argv)
    assert "started 2 processes; this script runs in one" in message
