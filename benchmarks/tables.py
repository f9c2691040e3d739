"""Results as Markdown tables, for the screen and for benchmarks/results/README.md."""

import statistics
from collections.abc import Iterable

from reproduction.table import markdown

TASKS = {
    "a": "stage (a), step only",
    "d": "stage (d), step only",
    "a+data": "stage (a) with data",
    "encode": "labelling, testing",
}


def speeds(result: dict, tasks: Iterable[str]) -> str:
    """Return a Markdown table of some tasks' results, a line per mode."""
    rows: list[list[object]] = [
        ["", "mode", "ms/image", "TFLOP/s", "memory, GB", "speedup over plain"]
    ]
    for task in tasks:
        modes = result["tasks"][task]
        for mode, measured in modes.items():
            ms = statistics.median(measured["ms_per_image"])
            passes = 1 if task == "encode" else 7 if (mode, task) == ("plain", "d") else 4
            rate = passes * result["flop_per_image"] / ms / 1e9
            speedup = ""
            if mode != "plain" and "plain" in modes:
                speedup = ratio(modes["plain"]["ms_per_image"], measured["ms_per_image"])
            numbers = f"{ms:.2f}", f"{rate:.3f}", f"{measured['memory_gb']:.2f}"
            rows.append([TASKS[task], mode, *numbers, speedup])
    return markdown(rows)


def parts(result: dict, task: str) -> str:
    """Return a Markdown table of the milliseconds per image that each part of a step takes, of the
    modes that were profiled."""
    modes = {mode: x for mode, x in result["tasks"][task].items() if "profile" in x}
    rows = [["part of the step, ms/image", *modes]]
    for part in dict.fromkeys(part for measured in modes.values() for part in measured["profile"]):
        times = (
            measured["profile"].get(part, 0) * statistics.median(measured["ms_per_image"])
            for measured in modes.values()
        )
        rows.append([part, *(f"{ms:.3g}" if ms else "–" for ms in times)])
    return markdown(rows)


def ratio(plain: list[float], fast: list[float]) -> str:
    """Return the speedup over pairs of turns as median (lowest–highest)."""
    speedups = [a / b for a, b in zip(plain, fast)]
    return f"{statistics.median(speedups):.2f} ({min(speedups):.2f}–{max(speedups):.2f})"


def processes_table(result: dict) -> str:
    """Return a Markdown table of the runs by number of processes: median (lowest–highest)."""
    columns = ("images_per_second", "seconds", "memory_gb")
    rows = [["processes", "images per second", "seconds besides training", "memory, GB"]]
    for count, runs in result["processes"].items():
        values = ([run[name] for run in runs] for name in columns)
        cells = (f"{statistics.median(v):.4g} ({min(v):.4g}–{max(v):.4g})" for v in values)
        rows.append([count, *cells])
    return markdown(rows)


def images_table(result: dict) -> str:
    """Return a Markdown table of the runs by number of images, without and with cache."""
    rows = [["images", "cache", "seconds besides training", "memory, GB"]]
    for count, runs in result["images"].items():
        for cache, run in runs.items():
            rows.append([f"{int(count):,}", cache, run["seconds"], run["memory_gb"]])
    return markdown(rows)
