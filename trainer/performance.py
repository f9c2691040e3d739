"""Prepare models to compute fast on their device."""

import ctypes
import sys
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError
from models import Encoder

from .distributed import is_main, world_size

# Estimated: compiling saves 4 ms of a ResNet-12 step on an H100, and takes a minute.
STEPS_TO_COMPILE = 15_000


def prepare(
    model: nn.Module, device: torch.device, amp: bool = False, compile: bool = False
) -> None:
    """Move `model` to `device` in channels-last format; set its encoders to mixed precision if
    `amp`, and compile them if `compile`. Prints a note where `amp` is slow.

    Raises InputError if torch.compile does not work.
    """
    if amp and lacks_bfloat16(device) and is_main():
        print(
            f"note: this {'GPU' if device.type == 'cuda' else 'CPU'} has no bfloat16 instructions; "
            "--amp can take ten times as long as --no-amp", flush=True,
        )  # fmt: skip
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    model.to(device).to(memory_format=torch.channels_last)  # faster convolutions
    if compile:
        require_compiler(device)
    for module in model.modules():
        if isinstance(module, Encoder):
            module.amp = amp
            if compile:
                # In place, so that names in the state dict do not change; with CUDA graphs on a
                # GPU; static shapes are faster.
                mode = "reduce-overhead" if device.type == "cuda" else None
                module.compile(mode=mode, dynamic=False)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether `device` is a GPU with bfloat16 arithmetic."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8


def lacks_bfloat16(device: torch.device) -> bool:
    """Return whether `device` is known to have no bfloat16 instructions."""
    if device.type == "cuda":
        return not has_bfloat16(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux: avx512_bf16, amx_bf16, bf16
    return (
        device.type == "cpu"
        and cpuinfo.exists()
        and "bf16" not in cpuinfo.read_text(encoding="utf-8")
    )


def compiling_pays(device: torch.device, steps: int) -> bool:
    """Return whether a run of `steps` is long enough to compile it: on one GPU, if that works.

    BatchNorm of groups, without copies of the groups, and LeakyReLU then take one pass.
    """
    if device.type != "cuda" or world_size() > 1 or steps < STEPS_TO_COMPILE:
        return False
    try:
        require_compiler(device)
    except InputError as error:
        print(f"note: not compiled, which would be faster: {error}", flush=True)
        return False
    return True


def require_compiler(device: torch.device) -> None:
    """Raise InputError if torch.compile does not work on `device`, for example without a C++
    compiler, Triton or a supported GPU."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # its type depends on version and cause
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--compile does not work here: {reason}") from error


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of returning it to the system, which
    would zero it again. Does nothing with other C libraries."""
    trim_threshold, mmap_max = -1, -4  # mallopt(3)'s numbers
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
