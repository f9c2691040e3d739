"""The form in which a model computes fastest on its device."""

import ctypes
import sys
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError
from models import Encoder

from .distributed import is_main


def sgd(model: nn.Module, lr: float, momentum: float, wd: float) -> torch.optim.SGD:
    """SGD of what in `model` is trained, all of it in one pass over memory (`fused`)."""
    trained = [theta for theta in model.parameters() if theta.requires_grad]
    return torch.optim.SGD(trained, lr, momentum=momentum, weight_decay=wd, fused=True)


def prepare(
    model: nn.Module, device: torch.device, amp: bool = False, compile: bool = False
) -> None:
    """Put `model` on `device`, in the form in which it computes fastest there: its encoders in
    mixed precision (`amp`), compiled (`compile`). Says so where `amp` is slow.

    Raises InputError if nothing can be compiled here.
    """
    if amp and lacks_bfloat16(device) and is_main():
        print(
            "note: these processors have no bfloat16; with --amp they can take ten times as long "
            "as with --no-amp", flush=True,
        )  # fmt: skip
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    model.to(device).to(memory_format=torch.channels_last)  # in which convolutions are faster
    if compile:
        require_compiler(device)
    for module in model.modules():
        if isinstance(module, Encoder):
            module.amp = amp
            if compile:
                # Modules are compiled in place: the names in the state dict stay as they are.
                # As CUDA graphs on a GPU; for each shape its own code, none for any shape.
                mode = "reduce-overhead" if device.type == "cuda" else None
                module.compile(mode=mode, dynamic=False)


def has_bfloat16(device: torch.device) -> bool:
    """Is this a GPU that computes in bfloat16?"""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8


def lacks_bfloat16(device: torch.device) -> bool:
    """Are these processors without instructions for bfloat16, as far as the system says?"""
    described = Path("/proc/cpuinfo")  # Linux: avx512_bf16, amx_bf16, bf16
    return device.type == "cpu" and described.exists() and "bf16" not in described.read_text()


def require_compiler(device: torch.device) -> None:
    """Raise InputError if torch.compile does not work on `device`: for want of a C++ compiler, of
    Triton, of a GPU that it supports."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # of many kinds, by version and cause
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--compile does not work here: {reason}") from error


def keep_freed_memory() -> None:
    """Ask the C library to keep the memory that a step frees for the next step, instead of giving
    it back and having the system fill it with zeros again. Does nothing where it is not glibc."""
    trim_threshold, mmap_max = -1, -4  # mallopt(3)'s numbers
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
