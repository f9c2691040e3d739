"""Preparing models for their device."""

import pytest
import torch
from torch import nn

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
