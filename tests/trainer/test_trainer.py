"""The training loop: schedule, checkpoints, resuming."""

import contextlib
import functools
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from common.errors import InputError
from conftest import REPOSITORY, TINY, call, refused, states_equal
from moco import config, resume
from moco import train as train_module
from moco.builder import MoCo
from moco.checkpoint import load_checkpoint
from models import build_encoder
from trainer import trainer as trainer_module
from trainer.checkpoint import CHECKPOINT
from trainer.optimizer import adam, learning_rate, load_moments, sgd
from trainer.signals import CONTINUE, SAVE, Watch
from trainer.trainer import Trainer, take_step


def test_learning_rate():
    rates = [learning_rate(0.03, epoch, 200, [120, 160], cos=False) for epoch in range(200)]
    assert rates[0] == rates[119] == 0.03
    assert rates[120] == rates[159] == pytest.approx(0.003)
    assert rates[160] == rates[199] == pytest.approx(0.0003)
    cosine = [learning_rate(0.03, epoch, 200, [120, 160], cos=True) for epoch in range(200)]
    assert cosine[0] == 0.03 and cosine[100] == pytest.approx(0.015) and cosine[199] < 1e-5


@pytest.mark.parametrize("clip, scale", [(None, 1), (10, 1), (0.5, 0.1)])
def test_large_gradients_are_scaled_down(clip, scale):
    """The gradient (3, 4) has the norm 5."""
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    images = torch.tensor([[3.0, 4.0]])
    step = lambda model, views, rows, epoch: {"loss": model(views[0]).sum()}  # noqa: E731
    take_step(model, step, optimizer, [images], torch.zeros(1), 0, torch.device("cpu"), clip=clip)
    assert torch.allclose(before - model.weight, scale * images, atol=1e-5)


def test_a_step_may_call_backward_itself():
    model, noted = torch.nn.Linear(2, 1, bias=False), []
    before = model.weight.detach().clone()

    def step(model, views, rows, epoch):
        for view in views[0].split(1):
            (model(view).sum() / 2).backward()
        return {"loss": torch.tensor(7.0)}

    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    images, device = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.device("cpu")
    take_step(model, step, optimizer, [images], torch.zeros(2), 0, device, noted.append)
    assert torch.allclose(before - model.weight, torch.tensor([[0.5, 1.0]]))
    assert noted == [7]


def test_adam():
    """The first step of each weight has the length of the learning rate."""
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    before = model.weight.detach().clone()
    optimizer = adam(model, lr=0.01, momentum=0.9, wd=0)
    assert len(optimizer.param_groups[0]["params"]) == 1
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.allclose(before - model.weight, torch.full((2, 3), 0.01), rtol=1e-4)


@pytest.mark.parametrize("make", [adam, sgd])
@pytest.mark.parametrize("defect", ["shape", "nan", "other optimizer"])
def test_invalid_moments_are_refused(make, defect):
    optimizers = [m(torch.nn.Linear(3, 2), 0.1, 0.9, 0) for m in (make, make)]
    if defect == "other optimizer":
        optimizers[1] = {adam: sgd, sgd: adam}[make](torch.nn.Linear(3, 2), 0.1, 0.9, 0)
    for optimizer in optimizers:
        for theta in optimizer.param_groups[0]["params"]:
            theta.grad = torch.ones_like(theta)
        optimizer.step()
    saved = optimizers[1].state_dict()
    moments = [name for name in saved["state"][0] if name != "step"]
    if defect != "other optimizer":
        load_moments(optimizers[0], saved)
        bad = torch.zeros(5) if defect == "shape" else torch.full((2, 3), torch.nan)
        saved["state"][0][moments[-1]] = bad
    with pytest.raises((ValueError, KeyError)):
        load_moments(optimizers[0], saved)


def pretrain(data, folder, epochs, *more):
    call("main_moco", data, "--model_path", folder, *TINY, "--epochs", epochs, *more)
    return load_checkpoint(folder)


def distill(data, labels, folder, epochs, *more):
    argv = [data, "--savedir", labels, "--model_path", folder, "--epochs", epochs, *more]
    call("main_distill", *argv, *([] if "-j" in more else ["-j", 0]))
    return load_checkpoint(folder)


@pytest.mark.parametrize("flags", [["-j", 0], ["-j", 1, "--no-cache"], ["--views", "batch"]])
def test_resumed_equals_uninterrupted(data, tmp_path, flags):
    pretrain(data, tmp_path, 1, *flags)
    resumed = pretrain(data, tmp_path, 2, *flags, "--resume", tmp_path)
    whole = pretrain(data, tmp_path / "whole", 2, *flags)
    assert resumed["epoch"] == whole["epoch"] == 2
    assert states_equal(resumed["state_dict"], whole["state_dict"])
    # Resuming a finished run changes nothing.
    before = (tmp_path / CHECKPOINT).read_bytes()
    pretrain(data, tmp_path, 2, *flags, "--resume", tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_resumed_run_keeps_its_precision_and_views(data, tmp_path):
    pretrain(data, tmp_path, 1, "--amp", "--views", "batch")
    args = pretrain(data, tmp_path, 2, "--resume", tmp_path)["args"]
    assert (args["amp"], args["views_by"]) == (True, "batch")
    with pytest.raises(InputError, match="--no-amp conflicts with .* --amp; --overwrite"):
        pretrain(data, tmp_path, 3, "--resume", tmp_path, "--no-amp")


def test_all_kinds_of_views_train_alike(data, tmp_path):
    """Identical with and without the cache; about the same loss with batch views."""
    kinds = {"pil": ["--views", "pil"], "file": ["--no-cache"], "batch": ["--views", "batch"]}
    losses, states = {}, {}
    for name, flags in kinds.items():
        states[name] = pretrain(data, tmp_path / name, 3, "-j", 0, *flags)["state_dict"]
        log = (tmp_path / name / "log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in log[1:]]
    assert states_equal(states["pil"], states["file"])
    assert not states_equal(states["pil"], states["batch"])
    assert losses["batch"] == pytest.approx(losses["pil"], rel=0.1)


def test_resumed_student_equals_uninterrupted(chain, data, tmp_path, capsys):
    """Resumed after one of the teacher's 2 epochs."""
    whole = distill(data, chain.labels, tmp_path / "whole", 2)
    half = distill(data, chain.labels, tmp_path / "half", 1)
    assert "α_t" not in capsys.readouterr().out
    # As left by a 2-epoch run stopped after the first epoch, in which α_t is 0 anyway.
    half["args"]["epochs"] = 2
    torch.save(half, tmp_path / "half" / CHECKPOINT)
    resumed = distill(data, chain.labels, tmp_path / "half", 2, "--resume", tmp_path / "half")
    assert states_equal(resumed["state_dict"], whole["state_dict"])
    assert "α_t" not in capsys.readouterr().out
    distill(data, chain.labels, tmp_path / "half", 3, "--resume", tmp_path / "half")
    assert "--epochs 3 instead of 2 changes α_t" in capsys.readouterr().out


def test_student_with_dic_resumes_exactly(chain, data, tmp_path):
    """Between two measurements it resumes with the temperatures of the last."""
    dic = ["--correction", "dic", "--dic-interval", 2, "--dic-gamma", 0.5, "--pseudo-label", "hard"]
    dic += ["--schedule", 2]  # else it would follow --epochs
    whole = distill(data, chain.labels, tmp_path / "whole", 4, *dic)
    distill(data, chain.labels, tmp_path / "half", 3, *dic)
    resumed = distill(data, chain.labels, tmp_path / "half", 4, *dic, "--resume", tmp_path / "half")
    assert states_equal(resumed["state_dict"], whole["state_dict"])


def test_student_refuses_other_labels_on_resume(chain, data, tmp_path):
    distill(data, chain.labels, tmp_path / "d", 0)
    call(
        "generate_pseudo", "--datadir", data, "--resume", chain.pretrained, "--k_shot", 2,
        "--savedir", tmp_path / "labels", "--augnum", 1, "-j", 0,
    )  # fmt: skip
    with pytest.raises(InputError, match="was trained on other pseudo labels than those in"):
        distill(data, tmp_path / "labels", tmp_path / "d", 1, "--resume", tmp_path / "d")


@pytest.mark.slow
def test_compiled_equals_plain(data, tmp_path):
    """The same losses within rounding, and the same names in the checkpoint."""
    logs = []
    for name, how in (("one", []), ("other", ["--compile"])):
        pretrain(data, tmp_path / name, 2, *how)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["loss"] for line in lines[1:]])
    assert logs[1] == pytest.approx(logs[0], rel=0.02)
    states = [load_checkpoint(tmp_path / name)["state_dict"] for name in ("one", "other")]
    assert states[0].keys() == states[1].keys()


def test_runs_that_are_compiled(data, tmp_path, monkeypatch):
    """By default those that are long enough; a resumed run decides by its whole length."""
    asked, compiled = [], []

    def pays(device, steps):
        asked.append((device.type, steps))
        return steps >= 8

    monkeypatch.setattr(train_module, "compiling_pays", pays)
    monkeypatch.setattr(trainer_module, "prepare", lambda *args: compiled.append(args[3]))
    pretrain(data, tmp_path, 1)
    pretrain(data, tmp_path, 2)
    pretrain(data, tmp_path, 3, "--no-compile")
    pretrain(data, tmp_path, 4, "--compile")
    assert asked == [("cpu", 4), ("cpu", 8)]
    assert compiled == [False, True, False, True]


def test_nothing_is_recompiled():
    """Neither DropBlock's rising rate nor BatchNorm's counter causes recompilation."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    model = MoCo(functools.partial(build_encoder, "resnet12", 16), 16, 32, batchnorm_groups=2)
    for encoder in (model.query_encoder, model.key_encoder):
        encoder.compile(backend="eager")
    model.train()
    graphs = []
    for _ in range(3):
        model(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))[0].sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[2] > 0 and not counters["graph_break"]
    torch._dynamo.reset()


def test_no_compiler(data, tmp_path, monkeypatch):
    def fails(function):
        raise RuntimeError("no C++ compiler\nand details")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(InputError, match="^--compile does not work here: no C.. compiler$"):
        pretrain(data, tmp_path, 1, "--compile")


def test_resumed_into_another_folder(chain, data, tmp_path):
    """The source does not change; the new folder has its own checkpoint and log."""
    before = (chain.pretrained / CHECKPOINT).read_bytes()
    at_once = pretrain(data, tmp_path, 2, "--resume", chain.pretrained)
    assert at_once["epoch"] == 2
    further = pretrain(data, tmp_path, 3, "--resume", chain.pretrained, "--overwrite")
    assert further["epoch"] == 3
    about, *lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert about["start_epoch"] == 2 and [line["epoch"] for line in lines] == [3]
    assert (chain.pretrained / CHECKPOINT).read_bytes() == before


def test_start_epoch(data, tmp_path):
    checkpoint = pretrain(data, tmp_path, 3, "--start-epoch", 2, "--schedule", 2)
    _, line = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert checkpoint["epoch"] == line["epoch"] == 3 and line["lr"] == pytest.approx(0.003)


def test_student_inherits_the_teachers_settings(chain, data, tmp_path):
    pretrain(data, tmp_path / "a", 1, "--lr", 0.02, "--cos", "--moco-t", 0.2)
    labelling = ["--datadir", data, "--resume", tmp_path / "a", "--k_shot", 1, "-j", 0]
    call("generate_pseudo", *labelling, "--savedir", tmp_path / "labels")
    args = distill(data, tmp_path / "labels", tmp_path / "d", 1)["args"]
    assert (args["lr"], args["cos"], args["moco_t"], args["batch_size"]) == (0.02, True, 0.2, 8)
    call(
        "main_distill", data, "--savedir", tmp_path / "labels", "--model_path", tmp_path / "e",
        "--no-cos", "--lr", 0.01, "-j", 0,
    )  # fmt: skip
    args = load_checkpoint(tmp_path / "e")["args"]
    assert (args["lr"], args["cos"], args["epochs"]) == (0.01, False, 1)


@pytest.mark.parametrize("stage", ["moco", pytest.param("distill", marks=pytest.mark.slow)])
def test_two_processes_equal_one(chain, data, tmp_path, stage):
    def train(folder, epochs, *flags):
        # The key encoder must move, too, and rounding must not be amplified.
        flags = ["--moco-m", 0.5, "--lr", 0.003, *flags]
        if stage == "moco":
            return pretrain(data, tmp_path / folder, epochs, *flags)["state_dict"]
        flags += ["--correction", "dic", "--dic-interval", 1]
        return distill(data, chain.labels, tmp_path / folder, epochs, *flags)["state_dict"]

    two_processes = ["--multiprocessing-distributed", "--nproc", 2]
    epochs = 1 if stage == "moco" else 2  # the correction comes after the first
    start, one, two = train("0", 0), train("1", epochs), train("2", epochs, *two_processes)
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines()[-1] for n in "12"]
    losses = [json.loads(line)["loss"] for line in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for name in one:
        if one[name].is_floating_point():  # weights, queue and BatchNorm's running statistics
            moved, apart = (one[name] - start[name]).norm(), (two[name] - one[name]).norm()
            # Flat image regions are ties in max-pooling, which rounding breaks.
            most = 0.15 if "query_encoder.backbone" in name else 0.02
            assert moved > 0 and apart < most * moved, (name, apart / moved)


def test_errors_do_not_wait_for_workers(data, tmp_path):
    """A bug ends the run with its traceback, although data-loading workers ignore signals."""
    code = (
        "import main_moco\n"
        "def step(*_): raise RuntimeError('a defect')\n"
        "main_moco.step = step\n"
        f"main_moco.main({[str(data), '--model_path', str(tmp_path), *TINY, '-j', '1']!r})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 1 and ran.stderr.endswith("RuntimeError: a defect\n")


@pytest.mark.parametrize("share, saved", [(0, [0, 4]), (1, [0, 1, 2, 3, 4])])
def test_epochs_saved(data, tmp_path, monkeypatch, share, saved):
    epochs = []
    monkeypatch.setattr(
        resume, "save_checkpoint", lambda folder, state: epochs.append(state["epoch"])
    )
    argv = [data, "--model_path", tmp_path, *TINY, "--epochs", 4, "--save-share", share]
    call("main_moco", *argv, "--save-minutes", 0)
    assert epochs == saved


def test_saving_is_cheap(monkeypatch):
    """Checkpoints of one second are saved if the last one began 20 seconds ago."""
    state = SimpleNamespace(save_time=100.0, save_seconds=1.0)
    state.config = SimpleNamespace(save_share=0.05)
    cheap = []
    for now in (101.0, 119.9, 120.1):
        monkeypatch.setattr(time, "perf_counter", lambda now=now: now)
        cheap.append(Trainer.saving_is_cheap(state))
    assert cheap == [False, False, True]


@pytest.mark.parametrize("stage", ["moco", "distill"])
def test_killed_after_epochs_that_were_not_saved(chain, data, tmp_path, monkeypatch, stage):
    """They are trained again, k-NN scores and DIC's refresh included, and logged once."""

    def train(folder):
        if stage == "moco":
            return pretrain(data, tmp_path / folder, 4, "--save-share", 0, "--knn-every", 1)
        dic = ["--correction", "dic", "--dic-interval", 1, "--dic-gamma", 0.5]
        return distill(data, chain.labels, tmp_path / folder, 4, "--save-share", 0, *dic)

    left = [*[CONTINUE] * 4, SAVE, *[CONTINUE] * 5]  # saved in the second epoch

    def action(watch):
        if not left:
            raise RuntimeError("killed")
        return left.pop(0)

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "action", action)
        with pytest.raises(RuntimeError, match="killed"):
            train("killed")
    assert load_checkpoint(tmp_path / "killed")["epoch"] == 1
    assert epochs_of(tmp_path / "killed")[-1]["epoch"] == 2
    killed = train("killed")
    assert states_equal(killed["state_dict"], whole["state_dict"])
    assert epochs_of(tmp_path / "killed") == epochs_of(tmp_path / "whole")


def epochs_of(folder):
    """Return the epochs in a log, without their speed."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    speed = {"seconds", "images_per_second"}
    return [{k: v for k, v in x.items() if k not in speed} for x in lines if "epoch" in x]


def test_a_folder_in_which_another_process_trains(data, tmp_path, capsys, monkeypatch):
    """Refused before anything is written; afterwards it resumes."""
    argv = ["main_moco", data, "--model-path", tmp_path, *TINY]
    call(*argv, "--epochs", 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("trainer.distributed.alone_in", lambda _: contextlib.nullcontext(False))
        error = refused(capsys, monkeypatch, *argv, "--epochs", 2)
    assert f"another process is training in {tmp_path}; wait for it" in error
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    call(*argv, "--epochs", 2)
    assert "2 epochs done" in capsys.readouterr().out


def test_a_folder_in_which_another_process_has_just_trained(data, tmp_path, capsys, monkeypatch):
    """While this one opens its data: what it has read is not the newest state."""
    argv = ["main_moco", data, "--model-path", tmp_path, *TINY]
    call(*argv, "--epochs", 1)
    opened = config.open_data

    @functools.wraps(opened)
    def slowly(*words, **options):
        monkeypatch.setattr(config, "open_data", opened)
        call(*argv, "--epochs", 2)
        return opened(*words, **options)

    monkeypatch.setattr(config, "open_data", slowly)
    error = refused(capsys, monkeypatch, *argv, "--epochs", 3)
    assert f"another process has just trained in {tmp_path}; rerun" in error
    assert load_checkpoint(tmp_path)["epoch"] == 2
    call(*argv, "--epochs", 3)
    assert load_checkpoint(tmp_path)["epoch"] == 3
