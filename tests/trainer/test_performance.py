"""The form in which a model computes fastest."""

import pytest
import torch
from torch import nn

from trainer import performance
from trainer.performance import prepare


@pytest.mark.parametrize("flags, told", [("avx2 fma", True), ("avx512_bf16 amx_bf16", False)])
def test_slow_mixed_precision_is_told(flags, told, tmp_path, monkeypatch, capsys):
    described = tmp_path / "cpuinfo"
    described.write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(performance, "Path", lambda path: described)
    for device, amp in (("cpu", False), ("meta", True)):
        prepare(nn.Linear(2, 2), torch.device(device), amp)
    assert not capsys.readouterr().out
    prepare(nn.Linear(2, 2), torch.device("cpu"), amp=True)
    assert ("no bfloat16; with --amp they can take ten times" in capsys.readouterr().out) == told
