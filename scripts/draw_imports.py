"""Draw the imports between packages as a Mermaid diagram, between the markers in ARCHITECTURE.md.

python scripts/draw_imports.py
"""

import ast
import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

FLOORS = (  # from the bottom up
    {"models", "common"},  # backbones; errors, files, seeds
    {"datasets"},  # data
    {"trainer"},  # training any model safely
    {"moco", "evaluation", "plots"},  # the method; its scores and predictions; figures
    {"main_moco", "generate_pseudo", "main_distill", "test", "baselines", "reproduction"},
    {"scripts", "benchmarks"},  # start scripts; speed and memory
)


class Import(NamedTuple):
    """An import of `imported` by `module`, on `line` of `file`."""

    module: str
    imported: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.module} imports {self.imported}"


def module_of(file: Path) -> str:
    """Return a file's module: `moco` for moco/__init__.py, `moco.builder` for moco/builder.py."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(root: Path, files: list[Path]) -> list[Import]:
    """Return all imports between `files`, which are relative to `root`.

    This includes imports within functions and the __init__ of other packages, imported implicitly.
    """
    modules = {module_of(file) for file in files}
    imports = []
    for file in files:
        module = module_of(file)
        package = file.parent.parts
        parents = {".".join(package[:depth]) for depth in range(1, len(package) + 1)}
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                relative = "." * node.level + (node.module or "")
                start = importlib.util.resolve_name(relative, ".".join(package))
                named = [f"{start}.{alias.name}" for alias in node.names]
            else:
                continue
            imported = set()
            for name in named:
                parts = name.split(".")
                chain = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
                chain = [name for name in chain if name in modules]
                # The module's own parent packages are already imported, unless named directly.
                imported |= set(chain[-1:]) | (set(chain) - parents)
            imports += [Import(module, name, file, node.lineno) for name in sorted(imported)]
    return imports


def tracked(root: Path) -> list[Path]:
    """Return the Python files that git tracks in `root`, without the tests."""
    command = ["git", "-C", str(root), "ls-files", "*.py"]
    names = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    files = [Path(name) for name in names if not name.startswith("tests/")]
    return [file for file in files if (root / file).exists()]


def arrows(imports: list[Import]) -> list[tuple[str, str]]:
    """Return the imports between packages, without those implied by others."""
    below: dict[str, set[str]] = {}
    for item in imports:
        start, end = (name.partition(".")[0] for name in (item.module, item.imported))
        if start != end and not item.module.endswith(".__main__"):
            below.setdefault(start, set()).add(end)

    def reachable(start: str) -> set[str]:
        return {end for name in below.get(start, ()) for end in {name} | reachable(name)}

    return sorted(
        (start, end)
        for start, ends in below.items()
        for end in ends
        if not any(end in reachable(other) for other in ends - {end})
    )


def diagram(imports: list[Import]) -> str:
    """Return the Mermaid diagram: floors from the top down and arrows between packages."""
    packages = {x.partition(".")[0] for item in imports for x in (item.module, item.imported)}
    lines = ["```mermaid", "flowchart TD"]
    for number in range(len(FLOORS), 0, -1):
        names = [f"{name}[{name}]" for name in sorted(FLOORS[number - 1] & packages)]
        lines += [
            f'    subgraph floor{number} ["floor {number}"]',
            *(f"        {n}" for n in names),
        ]
        lines.append("    end")
    lines += [f"    {start} --> {end}" for start, end in arrows(imports)]
    return "\n".join([*lines, "```"])


def rewritten(text: str, imports: list[Import]) -> str:
    """Return the page with a new diagram."""
    new = f"<!-- imports -->\n{diagram(imports)}\n<!-- /imports -->"
    return re.sub("<!-- imports -->.*<!-- /imports -->", lambda _: new, text, flags=re.DOTALL)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    page = root / "ARCHITECTURE.md"
    text = rewritten(page.read_text(encoding="utf-8"), imports_of(root, tracked(root)))
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


if __name__ == "__main__":
    main()
