"""The benchmarks run, and report the right numbers."""

import json
import types

import pytest
import torch

from benchmarks import profiling, scaling, throughput
from benchmarks.tables import ratio
from common.errors import InputError
from datasets import open_dataset

SMALL = (
    "--arch conv4 --image-size 32 -b 8 --bn-groups 2 --steps 1 --turns 2 -j 0 --device cpu".split()
)


@pytest.mark.parametrize("task", throughput.TASKS)
def test_the_turns_of_every_task(data, task):
    """In this process; the tests below start others."""
    args = throughput.parser().parse_args(SMALL)
    images = open_dataset(data).base
    some = images.take(images.ids[:8])
    for mode in ("plain", "default", "amp"):
        model, steps = throughput.make_steps(args, mode, task, some, torch.device("cpu"))
        assert sum(steps()) == 8
        shares = profiling.profile(model, steps(), torch.device("cpu"))
        assert 0.9 < sum(shares.values()) < 1.01 and "convolution" in shares


def test_parts_of_a_step():
    def event(name, parent=None):
        return types.SimpleNamespace(name=name, cpu_parent=parent)

    assert profiling.part_of(event("aten::mkldnn_convolution")) == "convolution"
    assert profiling.part_of(event("aten::leaky_relu_backward")) == "ReLU"
    assert profiling.part_of(event("aten::add")) == "other"
    inside = event("aten::max_pool2d", event("aten::pool", event("part: DropBlock")))
    assert profiling.part_of(inside) == "DropBlock"
    assert profiling.part_of(event("aten::add_", event("Optimizer.step#SGD.step"))) == "SGD"


@pytest.mark.slow
def test_turn_about(tmp_path, capsys):
    out, few = tmp_path / "t.json", ["--tasks", "a", "--modes", "plain", "default", "--profile"]
    throughput.main([*SMALL, *few, "--out", str(out)])
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    default = {"amp": False, "compile": False, "views_by": "pil"}
    assert result["modes"] == {"plain": None, "default": default}
    assert list(result["tasks"]) == ["a"] and "stage (a), step only" in printed
    for found in result["tasks"]["a"].values():
        assert len(found["ms_per_image"]) == 2 and min(found["ms_per_image"]) > 0
        assert 0.1 < found["memory_gb"] < 10 and found["profile"]
    assert result["settings"]["batch_size"] == 8 and result["made_by"]["torch"] == torch.__version__


def test_results_are_written_after_each_task(data, tmp_path, monkeypatch):
    out, images = tmp_path / "t.json", open_dataset(data).base

    def compare(args, task, images):
        if task == "d":
            assert list(json.loads(out.read_text())["tasks"]) == ["a"]
            raise InputError("the end")
        return {"default": {"ms_per_image": [1.0], "memory_gb": 1.0}}

    monkeypatch.setattr(throughput, "compare", compare)
    monkeypatch.setattr(throughput, "make_images", lambda folder, count: images)
    with pytest.raises(InputError, match="the end"):
        throughput.main([*SMALL, "--tasks", "a", "d", "--out", str(out)])


def test_what_modes_mean(monkeypatch):
    monkeypatch.setattr(throughput, "has_bfloat16", lambda device: device.type == "cuda")
    gpu = torch.device("cuda")
    views = {"views_by": "batch"}
    assert throughput.meaning("default", gpu) == {"amp": True, "compile": False, **views}
    assert throughput.meaning("compile", gpu) == {"amp": True, "compile": True, **views}
    assert throughput.meaning("plain", gpu) is None


def test_error_in_a_process(monkeypatch):
    args = throughput.parser().parse_args([*SMALL, "--device", "cuda:7", "--modes", "plain"])
    args.start_method = "fork"
    with pytest.raises(InputError, match="GPU 7|cuda:7"):
        throughput.compare(args, "a", None)


def test_ratios_of_consecutive_turns():
    """The machine is half as fast in the second turn: the ratio is the same."""
    assert ratio([6.0, 12.0, 6.6], [2.0, 4.0, 2.0]) == "3.00 (3.00–3.30)"


def test_flop():
    """51.3 GFLOP for ResNet-12 at 224 pixels."""
    assert throughput.flop_per_image("resnet12", 224) / 1e9 == pytest.approx(51.3, abs=0.1)


@pytest.mark.slow
def test_scaling_of_a_few_images(tmp_path):
    args = scaling.parser().parse_args(["-b", "8", "-j", "0"])
    scaling.make_data(tmp_path / "data", 1003)
    names = sorted((tmp_path / "data" / "common").iterdir())
    assert len(names) == 1003 and names[0].samefile(names[999])
    assert not names[1000].samefile(names[0])
    few = tmp_path / "few"
    scaling.make_data(few, 32)
    for data, processes, epochs in ((tmp_path / "data", 1, 0), (few, 2, 2)):
        found = scaling.measure(args, data, tmp_path, processes, epochs)
        assert found["seconds"] > 0 and 0.1 < found["memory_gb"] < 10
        assert ("images_per_second" in found) == bool(epochs)


def test_failing_run(tmp_path):
    args = scaling.parser().parse_args(["-b", "5"])
    scaling.make_data(tmp_path / "data", 8)
    with pytest.raises(InputError, match="--batch-size 5"):
        scaling.measure(args, tmp_path / "data", tmp_path)
