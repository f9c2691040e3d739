"""Draw which package imports which, between the markers in ARCHITECTURE.md, as a Mermaid diagram.

python scripts/draw_imports.py
"""

import ast
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

FLOORS = (  # from the ground up
    {"models", "common"},  # what f_q can be; errors, files, seeds
    {"datasets"},  # what it is fed
    {"trainer"},  # training any model safely
    {"moco", "plots"},  # the method; the papers' figures
    {"main_moco", "generate_pseudo", "main_distill", "test", "baselines", "reproduction"},
    {"scripts", "benchmarks"},  # how people start it; how fast it is
)


class Import(NamedTuple):
    """`module` imports `imported`, in `line` of its `file`."""

    module: str
    imported: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.module} imports {self.imported}"


def module_of(file: Path) -> str:
    """`moco` for moco/__init__.py, `moco.builder` for moco/builder.py."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(root: Path, files: list[Path]) -> list[Import]:
    """All imports among `files`, which are relative to `root`: those within functions, too, and
    those of a package's __init__ that come with an import from another package."""
    modules = {module_of(file) for file in files}
    found = []
    for file in files:
        module = module_of(file)
        package = file.parent.parts
        above = {".".join(package[:depth]) for depth in range(1, len(package) + 1)}
        for node in ast.walk(ast.parse((root / file).read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = [*package[: len(package) - node.level + 1]] if node.level else []
                start = ".".join([*start, *filter(None, [node.module])])
                named = [f"{start}.{alias.name}" for alias in node.names]
            else:
                continue
            imported = set()
            for name in named:
                parts = name.split(".")
                chain = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
                chain = [name for name in chain if name in modules]
                # Its own package has begun before; what is imported from that itself is another
                # matter.
                imported |= set(chain[-1:]) | (set(chain) - above)
            found += [Import(module, name, file, node.lineno) for name in sorted(imported)]
    return found


def floor_of(module: str) -> int:
    """Return the floor of a module, counted from 1; what `python -m package` starts is at the top,
    with the scripts."""
    top = module.partition(".")[0]
    if module.endswith(".__main__"):
        return len(FLOORS)
    found = [number for number, floor in enumerate(FLOORS, start=1) if top in floor]
    if not found:
        raise ValueError(f"{module} is on no floor: name it in FLOORS")
    return found[0]


def tracked(root: Path) -> list[Path]:
    """Return the Python files that git tracks in `root`, without the tests."""
    command = ["git", "-C", str(root), "ls-files", "*.py"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    files = [Path(name) for name in names if not name.startswith("tests/")]
    return [file for file in files if (root / file).exists()]


def arrows(imports: list[Import]) -> list[tuple[str, str]]:
    """Return which package imports which, without the arrows that follow from others."""
    below: dict[str, set[str]] = {}
    for one in imports:
        start, end = (name.partition(".")[0] for name in (one.module, one.imported))
        if start != end and not one.module.endswith(".__main__"):
            below.setdefault(start, set()).add(end)

    def reached(start: str) -> set[str]:
        return {end for name in below.get(start, ()) for end in {name} | reached(name)}

    return sorted(
        (start, end)
        for start, ends in below.items()
        for end in ends
        if not any(end in reached(other) for other in ends - {end})
    )


def diagram(imports: list[Import]) -> str:
    """Return the floors, from the top down, and the arrows between packages."""
    found = {name.partition(".")[0] for one in imports for name in (one.module, one.imported)}
    lines = ["```mermaid", "flowchart TD"]
    for number in range(len(FLOORS), 0, -1):
        names = [f"{name}[{name}]" for name in sorted(FLOORS[number - 1] & found)]
        lines += [
            f'    subgraph floor{number} ["floor {number}"]',
            *(f"        {n}" for n in names),
        ]
        lines.append("    end")
    lines += [f"    {start} --> {end}" for start, end in arrows(imports)]
    return "\n".join([*lines, "```"])


def rewritten(text: str, imports: list[Import]) -> str:
    """Return the page with its diagram drawn anew."""
    new = f"<!-- imports -->\n{diagram(imports)}\n<!-- /imports -->"
    return re.sub("<!-- imports -->.*<!-- /imports -->", lambda _: new, text, flags=re.DOTALL)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    page = root / "ARCHITECTURE.md"
    page.write_text(rewritten(page.read_text(), imports_of(root, tracked(root))))
    print(f"written: {page}")


if __name__ == "__main__":
    main()
