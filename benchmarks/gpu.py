"""What scripts/gpu_session.sh needs besides the scripts: a machine's ceilings, a trace of one step,
made-up Pap smears, an encoder in few bytes.

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

LARGEST = 8_000_000  # bytes of a trace that is kept
QUERIED = (
    "name", "driver_version", "memory.total", "memory.used", "power.limit", "power.draw",
    "temperature.gpu", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "clocks_throttle_reasons.active",
)  # fmt: skip


def versions(how: argparse.Namespace) -> None:
    """Write what the machine is, and the most that it reaches."""
    device = torch.device(how.device)
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "idle": nvidia_smi(),
        "ceilings": ceilings(device, how.tiny),
        "busy": nvidia_smi(),  # the clocks have not fallen yet
    }
    how.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["ceilings"]))


def processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.machine())


def nvidia_smi() -> dict[str, str] | None:
    """What it says of the first GPU; None where there is none."""
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(QUERIED, map(str.strip, said.partition("\n")[0].split(","))))


def ceilings(device: torch.device, tiny: bool) -> dict[str, float]:
    """TFLOP/s of matrix products of random numbers; GB/s of a copy, read and written."""
    size = 512 if tiny else 8192
    found = {}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "high"), ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = best_time(lambda a=a, b=b: torch.mm(a, b), device)
        found[f"{name}_tflops"] = round(2 * size**3 / seconds / 1e12, 3)
    a = torch.empty(2**24 if tiny else 2**31, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    found["copy_gb_per_s"] = round(2 * len(a) / best_time(lambda: b.copy_(a), device) / 1e9, 1)
    return found


def best_time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one of ten calls in a row: the best of three such rows, after a first one."""
    took = []
    for _ in range(4):
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            work()
        wait(device)
        took.append((time.perf_counter() - started) / 10)
    return min(took[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trace(how: argparse.Namespace) -> None:
    """Write a trace of one step of stage (a) with its views, for chrome://tracing or Perfetto, and
    a table of its operations."""
    device = torch.device(how.device)
    words = ["--arch", "conv4", "--image-size", "32", "-b", "8"] if how.tiny else []
    settings = throughput.parser().parse_args([*words, "-j", "0"])
    settings.image_size = settings.image_size or 224
    settings.steps = 1
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    how.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        images = throughput.make_images(Path(folder), settings.batch_size)
        model, turn = throughput.make_turn(settings, "default", "a+data", images, device)
        for _ in range(5):
            turn()
        wait(device)
        with torch.profiler.profile(activities=activities) as found:
            started = time.perf_counter()
            turn()
            wait(device)
            seconds = time.perf_counter() - started
        raw = Path(folder) / "trace.json"
        found.export_chrome_trace(str(raw))
        packed = how.out / "trace.json.gz"
        with open(raw, "rb") as source, gzip.open(packed, "wb") as target:
            shutil.copyfileobj(source, target)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = found.key_averages()
    # An operation's kernels are listed by themselves, too: what runs on the GPU, once.
    kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    lines = [f"one step with its views, under the profiler: {1e3 * seconds:.1f} ms"]
    if kernels:
        lines.append(f"{len(kernels)} kernels and copies, {1e3 * busy:.1f} ms of the GPU's time")
    table = averages.table(sort_by=key, row_limit=40, max_name_column_width=60)
    (how.out / "trace.txt").write_text("\n".join([*lines, table]) + "\n")
    print("\n".join(lines))
    if packed.stat().st_size > LARGEST:
        print(f"the trace of {packed.stat().st_size / 1e6:.0f} MB is too large to keep")
        packed.unlink()


def smears(how: argparse.Namespace) -> None:
    """Draw lesions into the folders of Pap-smear's classes, about as many as it has."""
    base, rare, size = (8, 8, 40) if how.tiny else (169, 80, 160)
    generator = np.random.default_rng(0)
    for name, look in zip(papsmear.CLASSES, synthetic.LOOKS.values()):
        folder = how.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(base if name in papsmear.BASE_CLASSES else rare):
            synthetic.draw_lesion(look, generator, size).save(folder / f"{number:03}.png")
    print(f"written: {how.out}")


def halve(how: argparse.Namespace) -> None:
    """Write the weights of scripts/export.py with matrices in 16 bits; what BatchNorm has, and all
    else of one dimension, keeps its 32. `load_state_dict` takes both."""
    state = torch.load(how.encoder, map_location="cpu", weights_only=True)
    small = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in state.items()}
    torch.save(small, how.out)
    before, after = (path.stat().st_size / 1e6 for path in (how.encoder, how.out))
    print(f"{how.out}: {after:.1f} MB, of {before:.1f}")


def parser() -> argparse.ArgumentParser:
    described = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=described)
    commands = found.add_subparsers(required=True)
    for do in (versions, trace, smears, halve):
        command = commands.add_parser(do.__name__, help=do.__doc__.partition(".")[0])
        command.set_defaults(do=do)
        if do is halve:
            command.add_argument("encoder", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--tiny", action="store_true", help="small sizes, to try it")
    return found


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.do(arguments)
