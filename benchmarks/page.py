"""Update the page of results: rewrite the tables of benchmarks/results/README.md from the JSON
files beside it.

    python -m benchmarks.page
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from reproduction.table import markdown
from trainer import cli

from .accuracy import read_runs, summary
from .throughput import TASKS, parts, speeds

RESULTS = Path(__file__).parent / "results"
THROUGHPUT = {
    "throughput-cpu.json": "2 processor cores with bfloat16, 112 px, batch 16",
    "throughput-avx2.json": "2 processor cores without bfloat16, 112 px, batch 16",
    "throughput-gpu-16.json": "One GPU, 224 px, batch 16",
    "throughput-gpu-64.json": "One GPU, 224 px, batch 64",
}


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def measured() -> Iterator[tuple[str, dict]]:
    """Yield a title and the results of each file of benchmarks/throughput.py that there is."""
    yield from ((title, read(x)) for x, title in THROUGHPUT.items() if (RESULTS / x).exists())


def throughput() -> str:
    return "\n\n".join(f"{title}:\n\n{speeds(x, TASKS)}" for title, x in measured())


def profile() -> str:
    """Return the time spent in each part of a step of stage (a), by mode."""
    return "\n\n".join(f"{title}:\n\n{parts(x, 'a')}" for title, x in measured())


def processes() -> str:
    columns = ("images_per_second", "seconds_to_first_step", "memory_gb")
    rows = [["processes", "images per second", "seconds to the first step", "memory, GB"]]
    for count, runs in read("scaling-processes.json")["processes"].items():
        values = ([run[name] or 0 for run in runs] for name in columns)
        cells = (f"{statistics.median(v):.4g} ({min(v):.4g}–{max(v):.4g})" for v in values)
        rows.append([count, *cells])
    return markdown(rows)


def images() -> str:
    columns = ("seconds_to_first_step", "images_per_second", "memory_gb")
    rows = [["images", "cache", "seconds to the first step", "images per second", "memory, GB"]]
    for count, runs in read("scaling-images.json")["images"].items():
        for cache, run in runs.items():
            rows.append([f"{int(count):,}", cache, *(run[name] for name in columns)])
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
        start, end = (f"<!-- {slash}{table.__name__} -->" for slash in ("", "/"))
        new = f"{start}\n{table()}\n{end}"
        text = re.sub(f"{start}.*?{end}", lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def main() -> None:
    page = RESULTS / "README.md"
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {page}")


if __name__ == "__main__":
    cli.run(main)
