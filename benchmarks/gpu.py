"""Helpers of scripts/gpu_session.sh: peak rates of the machine, a trace of one step, synthetic Pap
smears and half-precision encoders.

    python -m benchmarks.gpu versions FILE.json [--device DEVICE] [--tiny]
    python -m benchmarks.gpu trace FOLDER [--device DEVICE] [--tiny]
    python -m benchmarks.gpu smears FOLDER [--tiny]
    python -m benchmarks.gpu halve ENCODER.pt OUT.pt
"""

import argparse
import gzip
import json
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision

from datasets import papsmear, synthetic

from . import throughput

MAX_TRACE_BYTES = 8_000_000
QUERIED = (
    "name", "driver_version", "memory.total", "memory.used", "power.limit", "power.draw",
    "temperature.gpu", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "clocks_throttle_reasons.active",
)  # fmt: skip


def versions(args: argparse.Namespace) -> None:
    """Write versions, hardware and peak rates of the machine."""
    device = torch.device(args.device)
    report = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "idle": nvidia_smi(),
        "ceilings": ceilings(device, args.tiny),
        "busy": nvidia_smi(),  # before the clocks drop again
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["ceilings"]))


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.machine())


def nvidia_smi() -> dict[str, str] | None:
    """Return the state of the first GPU, None without one."""
    try:
        output = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"],
            capture_output=True, encoding="utf-8", timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(QUERIED, map(str.strip, output.partition("\n")[0].split(","))))


def ceilings(device: torch.device, tiny: bool) -> dict[str, float]:
    """Measure TFLOP/s of random matrix products and GB/s of a copy (bytes read plus written)."""
    size = 512 if tiny else 8192
    rates = {}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "high"), ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = best_time(lambda a=a, b=b: torch.mm(a, b), device)
        rates[f"{name}_tflops"] = round(2 * size**3 / seconds / 1e12, 3)
    a = torch.empty(2**24 if tiny else 2**31, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    rates["copy_gb_per_s"] = round(2 * len(a) / best_time(lambda: b.copy_(a), device) / 1e9, 1)
    return rates


def best_time(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds per call: the best of three rounds of ten calls, after a warm-up round."""
    times = []
    for _ in range(4):
        wait(device)
        start = time.perf_counter()
        for _ in range(10):
            function()
        wait(device)
        times.append((time.perf_counter() - start) / 10)
    return min(times[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trace(args: argparse.Namespace) -> None:
    """Write a trace of one step of stage (a), views included, for chrome://tracing or Perfetto, and
    a table of its operations."""
    device = torch.device(args.device)
    flags = ["--arch", "conv4", "--image-size", "32", "-b", "8"] if args.tiny else []
    settings = throughput.parser().parse_args([*flags, "-j", "0"])
    settings.image_size = settings.image_size or 224
    settings.steps = 1
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        images = throughput.make_images(Path(folder), settings.batch_size)
        model, turn = throughput.make_turn(settings, "default", "a+data", images, device)
        for _ in range(5):
            turn()
        wait(device)
        with torch.profiler.profile(activities=activities) as profiler:
            start = time.perf_counter()
            turn()
            wait(device)
            seconds = time.perf_counter() - start
        raw = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(raw))
        packed = args.out / "trace.json.gz"
        with open(raw, "rb") as source, gzip.open(packed, "wb") as target:
            shutil.copyfileobj(source, target)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages()
    # Count kernels only: an operation's time includes that of its kernels.
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    gpu_seconds = sum(e.self_device_time_total for e in kernels) / 1e6
    lines = [f"one step, views included, under the profiler: {1e3 * seconds:.1f} ms"]
    if kernels:
        lines.append(f"{len(kernels)} kernels and copies, {1e3 * gpu_seconds:.1f} ms of GPU time")
    table = averages.table(sort_by=key, row_limit=40, max_name_column_width=60)
    (args.out / "trace.txt").write_text("\n".join([*lines, table]) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if packed.stat().st_size > MAX_TRACE_BYTES:
        print(f"removed the trace: {packed.stat().st_size / 1e6:.0f} MB is too large")
        packed.unlink()


def smears(args: argparse.Namespace) -> None:
    """Write synthetic images in the layout of Pap-smear, about as many as it has."""
    base, rare, size = (8, 8, 40) if args.tiny else (169, 80, 160)
    generator = np.random.default_rng(0)
    for name, look in zip(papsmear.CLASSES, synthetic.LOOKS.values()):
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(base if name in papsmear.BASE_CLASSES else rare):
            synthetic.draw_lesion(look, generator, size).save(folder / f"{number:03}.png")
    print(f"written: {args.out}")


def halve(args: argparse.Namespace) -> None:
    """Write exported weights in float16, except one-dimensional ones (BatchNorm, biases).

    `load_state_dict` accepts the result.
    """
    state = torch.load(args.encoder, map_location="cpu", weights_only=True)
    small = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in state.items()}
    torch.save(small, args.out)
    before, after = (path.stat().st_size / 1e6 for path in (args.encoder, args.out))
    print(f"{args.out}: {after:.1f} MB (before: {before:.1f} MB)")


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    arg_parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = arg_parser.add_subparsers(required=True)
    for function in (versions, trace, smears, halve):
        command = commands.add_parser(function.__name__, help=function.__doc__.partition(".")[0])
        command.set_defaults(function=function)
        if function is halve:
            command.add_argument("encoder", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--tiny", action="store_true", help="small sizes, for testing")
    return arg_parser


if __name__ == "__main__":
    args = parser().parse_args()
    args.function(args)
