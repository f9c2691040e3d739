"""Update the page of results: rewrite the tables of benchmarks/results/README.md from the JSON
files beside it. Missing results are "not measured".

    python -m benchmarks.page
"""

import json
import re
import statistics
from pathlib import Path

from reproduction.table import markdown
from trainer import cli

from .accuracy import read_runs, summary
from .throughput import TASKS, ratio

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "throughput-cpu.json": "2 processor cores with bfloat16, 112 px, batch 16",
    "throughput-avx2.json": "2 processor cores without bfloat16, 112 px, batch 16",
    "throughput-gpu-16.json": "one GPU, 224 px, batch 16",
    "throughput-gpu-64.json": "one GPU, 224 px, batch 64",
}
NOT_MEASURED = "not measured"


def read(name: str) -> dict | None:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def throughput() -> str:
    """Return a table of the speedup over plain, median (lowest–highest), by task and mode."""
    results = [read(name) for name in COLUMNS]
    measured = [mode for r in results if r for modes in r["tasks"].values() for mode in modes]
    modes = list(dict.fromkeys(["plain", *measured, "default"]))
    rows = [["speedup over plain", "mode", *COLUMNS.values()]]
    for task, name in TASKS.items():
        for mode in modes[1:]:
            rows.append([name, mode, *(_ratio(result, task, mode) for result in results)])
    for mode in modes[1:]:
        cells = (_share_of_step(result, mode) for result in results)
        rows.append(["with data, relative to step only", mode, *cells])
    for task, name in TASKS.items():
        cells = (_memory(result, task, modes) for result in results)
        rows.append([f"peak memory: {name}", ", ".join(modes), *cells])
    for mode in modes:
        cells = (_rate(result, "a", mode) for result in results)
        rows.append(["stage (a), TFLOP/s", mode, *cells])
    return markdown(rows)


def _measured(result: dict | None, task: str, mode: str) -> dict | None:
    return result and result["tasks"].get(task, {}).get(mode)


def _ratio(result: dict | None, task: str, mode: str) -> str:
    plain, fast = _measured(result, task, "plain"), _measured(result, task, mode)
    if not plain or not fast:
        return NOT_MEASURED
    return ratio(plain["ms_per_image"], fast["ms_per_image"])


def _share_of_step(result: dict | None, mode: str) -> str:
    alone, with_data = _measured(result, "a", mode), _measured(result, "a+data", mode)
    if not alone or not with_data:
        return NOT_MEASURED
    alone, with_data = (statistics.median(x["ms_per_image"]) for x in (alone, with_data))
    return f"{alone / with_data:.0%}"


def _memory(result: dict | None, task: str, modes: list[str]) -> str:
    values = [_measured(result, task, mode) for mode in modes]
    if not any(values):
        return NOT_MEASURED
    return ", ".join(f"{x['memory_gb']:.2f}" if x else "–" for x in values) + " GB"


def _rate(result: dict | None, task: str, mode: str) -> str:
    measured = _measured(result, task, mode)
    if not measured:
        return NOT_MEASURED
    rate = 4 * result["flop_per_image"] / statistics.median(measured["ms_per_image"]) / 1e9
    return f"{rate:.3g}"


def profile() -> str:
    """Return the time spent in each part of a step of stage (a), by mode."""
    tables = []
    for name, title in COLUMNS.items():
        results = (read(name) or {}).get("tasks", {}).get("a", {})
        shares = {mode: x["profile"] for mode, x in results.items() if "profile" in x}
        if not shares:
            tables.append(f"{title}: {NOT_MEASURED}.")
            continue
        rows = [["part of the step", *shares]]
        for part in dict.fromkeys(part for parts in shares.values() for part in parts):
            times = (
                parts.get(part, 0) * statistics.median(results[mode]["ms_per_image"])
                for mode, parts in shares.items()
            )
            rows.append([part, *(f"{ms:.3g}" if ms else "–" for ms in times)])
        tables.append(f"{title}, in milliseconds per image:\n\n{markdown(rows)}")
    return "\n\n".join(tables)


def processes() -> str:
    rows = [["processes", "images per second", "seconds to the first step", "memory, GB"]]
    for count, runs in (read("scaling-processes.json") or {"processes": {}})["processes"].items():
        columns = ("images_per_second", "seconds_to_first_step", "memory_gb")
        values = ([run[name] or 0 for run in runs] for name in columns)
        cells = (f"{statistics.median(v):.4g} ({min(v):.4g}–{max(v):.4g})" for v in values)
        rows.append([count, *cells])
    return markdown(rows)


def images() -> str:
    rows = [["images", "cache", "seconds to the first step", "images per second", "memory, GB"]]
    for count, runs in (read("scaling-images.json") or {"images": {}})["images"].items():
        for cache, run in runs.items():
            cells = run["seconds_to_first_step"], run["images_per_second"], run["memory_gb"]
            rows.append([f"{int(count):,}", cache, *cells])
    return markdown(rows)


def accuracy() -> str:
    return summary(read_runs(RESULTS / "accuracy.jsonl"))


def made_by() -> str:
    """Return a list of the commit, date and machine of each file."""
    lines = []
    for path in sorted(RESULTS.glob("*.json*")):
        first = read_runs(path)[0] if path.suffix == ".jsonl" else read(path.name)
        origin = first["made_by"]
        lines.append(
            f"- `{path.name}`: commit {origin['commit']}, {origin['date'][:10]}, "
            f"{origin['machine']}, torch {origin['torch']}"
        )
    return "\n".join(lines)


TABLES = [throughput, profile, processes, images, accuracy, made_by]


def rewritten(text: str) -> str:
    """Return the page with new tables between `<!-- name -->` and `<!-- /name -->`."""
    for table in TABLES:
        name = table.__name__
        pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        new = f"<!-- {name} -->\n{table()}\n<!-- /{name} -->"
        text = pattern.sub(lambda _, new=new: new, text)
    return text


def main() -> None:
    page = RESULTS / "README.md"
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {page}")


if __name__ == "__main__":
    cli.run(main)
