"""Preparing models for their device."""

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from moco.builder import GroupedBatchNorm2d
from trainer import performance
from trainer.performance import prepare


@pytest.mark.parametrize("flags, slow", [("avx2 fma", True), ("avx512_bf16 amx_bf16", False)])
def test_note_on_slow_mixed_precision(flags, slow, tmp_path, monkeypatch, capsys):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(performance, "Path", lambda path: cpuinfo)
    for device, amp in (("cpu", False), ("meta", True)):
        prepare(nn.Linear(2, 2), torch.device(device), amp)
    assert not capsys.readouterr().out
    prepare(nn.Linear(2, 2), torch.device("cpu"), amp=True)
    assert ("no bfloat16" in capsys.readouterr().out) == slow


def test_compiling_pays(monkeypatch, capsys):
    """On one GPU, in long runs, where there is a compiler."""
    gpu, long = torch.device("cuda"), performance.STEPS_TO_COMPILE
    monkeypatch.setattr(performance, "require_compiler", lambda device: None)
    assert performance.compiling_pays(gpu, long)
    assert not performance.compiling_pays(gpu, long - 1)
    assert not performance.compiling_pays(torch.device("cpu"), long)
    monkeypatch.setattr(performance, "world_size", lambda: 2)
    assert not performance.compiling_pays(gpu, long)
    monkeypatch.undo()

    def fails(function):
        raise RuntimeError("no Triton\nand details")

    monkeypatch.setattr(torch, "compile", fails)
    assert not performance.compiling_pays(gpu, long)
    assert (
        "note: not compiled, which would be faster: --compile does not work here: no Triton\n"
        in (capsys.readouterr().out)
    )


class Normalised(nn.Module):
    """BatchNorm of groups and LeakyReLU."""

    def __init__(self):
        super().__init__()
        self.norm = GroupedBatchNorm2d(5, 4).double()
        self.relu = nn.LeakyReLU(0.1)

    def forward(self, x):
        return self.relu(self.norm(x))


@pytest.mark.slow
def test_compiled_batchnorm_is_exact():
    """Output, gradients and running statistics, in float64 and channels-last; in a few kernels,
    without copies of the groups."""
    x = torch.randn(8, 5, 6, 6, dtype=torch.float64) * 3 + 1
    grad, found, codes = torch.randn_like(x), [], []
    for compile in (False, True):
        torch.manual_seed(0)
        module = Normalised().to(memory_format=torch.channels_last).train()
        nn.init.normal_(module.norm.weight)
        nn.init.normal_(module.norm.bias)
        here = x.to(memory_format=torch.channels_last).requires_grad_()
        here.grad = None
        run = torch.compile(module, dynamic=False) if compile else module

        def step(run=run, here=here):
            out = run(here)
            out.backward(grad)
            return out

        out, codes = run_and_get_code(step) if compile else (step(), codes)
        norm = module.norm
        found.append([out, here.grad, norm.weight.grad, norm.bias.grad,
                      norm.running_mean, norm.running_var])  # fmt: skip
        x = x.detach()
    for eager, compiled in zip(*found):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-12)
    assert found[0][1].abs().max() > 0.01
    assert len(codes) == 2  # forward and backward
    assert not any("extern_kernels" in code.partition("def call")[2] for code in codes)
