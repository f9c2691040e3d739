"""Helpers of scripts/gpu_session.sh: versions and peak rates of the machine; a trace of one step.

python -m benchmarks.gpu versions FILE.json [--device DEVICE] [--tiny]
python -m benchmarks.gpu trace FOLDER [--device DEVICE] [--tiny]
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from trainer import cli
from trainer.provenance import provenance

from . import make_parser, save, throughput
from .profiling import profiler_of
from .throughput import nvidia_smi, wait

MAX_TRACE_BYTES = 8_000_000


def versions(args: argparse.Namespace) -> None:
    """Write versions, hardware and peak rates of the machine."""
    device = torch.device(args.device)
    report = {
        "made_by": provenance(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "processor": processor(),
        "idle": nvidia_smi(),
        "ceilings": ceilings(device, args.tiny),
        "busy": nvidia_smi(),  # before the clocks drop again
    }
    save(report, args.out)
    print(json.dumps(report["ceilings"]))


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.machine())


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
        seconds = best_time(lambda a=a, b=b: torch.mm(a, b))
        rates[f"{name}_tflops"] = round(2 * size**3 / seconds / 1e12, 3)
    a = torch.empty(2**24 if tiny else 2**31, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    rates["copy_gb_per_s"] = round(2 * len(a) / best_time(lambda: b.copy_(a)) / 1e9, 1)
    return rates


def best_time(function: Callable[[], object]) -> float:
    """Return the seconds per call: the best of three rounds of ten calls, each after a warm-up."""
    timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
    return min(timer.timeit(10).mean for _ in range(3))


def trace(args: argparse.Namespace) -> None:
    """Write a trace of one step of stage (a), views included, for chrome://tracing or Perfetto, and
    a table of its operations."""
    device = torch.device(args.device)
    flags = ["--arch", "conv4", "--image-size", "32", "-b", "8"] if args.tiny else []
    settings = throughput.parser().parse_args([*flags, "-j", "0"])
    settings.image_size = settings.image_size or 224
    settings.steps = 6
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        images = throughput.make_images(Path(folder), settings.steps * settings.batch_size)
        _, steps = throughput.make_steps(settings, "default", "a+data", images, device)
        run = steps()
        for _ in range(settings.steps - 1):
            next(run)
        wait(device)
        with profiler_of(device) as profiler:
            start = time.perf_counter()
            next(run)
            wait(device)
            seconds = time.perf_counter() - start
    packed = args.out / "trace.json.gz"
    profiler.export_chrome_trace(str(packed))
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


def parser() -> argparse.ArgumentParser:
    arg_parser = make_parser(__doc__)
    commands = arg_parser.add_subparsers(required=True)
    for function in (versions, trace):
        command = commands.add_parser(function.__name__, help=function.__doc__.partition(".")[0])
        command.set_defaults(function=function)
        command.add_argument("out", type=Path)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--tiny", action="store_true", help="small sizes, for testing")
    return arg_parser


def main() -> None:
    args = parser().parse_args()
    args.function(args)


if __name__ == "__main__":
    cli.run(main)
