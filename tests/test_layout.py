"""The house has floors: imports go downwards or along a floor, and never in a circle."""

from pathlib import Path

import pytest

from conftest import REPOSITORY, load_script

draw_imports = load_script("scripts/draw_imports")
Import, FLOORS = draw_imports.Import, draw_imports.FLOORS
imports_of, tracked = draw_imports.imports_of, draw_imports.tracked


def floor_of(module: str) -> int:
    """The floor of a module, from 1 at the bottom; __main__ modules are on the top floor."""
    package = module.partition(".")[0]
    if module.endswith(".__main__"):
        return len(FLOORS)
    numbers = [number for number, floor in enumerate(FLOORS, start=1) if package in floor]
    if not numbers:
        raise ValueError(f"{module} has no floor: add it to FLOORS")
    return numbers[0]


def upward(imports: list[Import]) -> list[str]:
    return [
        f"{one} (floor {floor_of(one.module)} from {floor_of(one.imported)})"
        for one in imports
        if floor_of(one.module) < floor_of(one.imported)
    ]


def circle(imports: list[Import]) -> list[str]:
    """The imports of a circle, if there is one."""
    out: dict[str, list[Import]] = {}
    for one in imports:
        out.setdefault(one.module, []).append(one)
    done = set()

    def search(module: str, path: list[Import]) -> list[Import]:
        passed = [one.module for one in path]
        if module in passed:
            return path[passed.index(module) :]
        if module in done:
            return []
        for one in out.get(module, []):
            if found := search(one.imported, [*path, one]):
                return found
        done.add(module)
        return []

    for module in sorted(out):
        if found := search(module, []):
            return [str(one) for one in found]
    return []


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    """Those of all tracked files but the tests."""
    return imports_of(REPOSITORY, tracked(REPOSITORY))


def test_imports_go_downwards(imports):
    assert len(imports) > 200
    assert {floor_of(one.module) for one in imports} == set(range(1, len(FLOORS) + 1))
    found = upward(imports)
    assert not found, "\n".join(found)


def test_no_circle(imports):
    found = circle(imports)
    assert not found, "\n".join(found)


def test_the_trainer_knows_no_method(imports):
    known = {"common", "models", "datasets", "trainer"}
    found = [one for one in imports if one.module.partition(".")[0] == "trainer"]
    foreign = [str(one) for one in found if one.imported.partition(".")[0] not in known]
    assert len(found) > 20 and not foreign, "\n".join(foreign)


def tree(root: Path, contents: dict[str, str]) -> list[Path]:
    """Python files in `root`, by name without the suffix."""
    files = {Path(name).with_suffix(".py"): text for name, text in contents.items()}
    for file in [file for file in files if file.parent != Path(".")]:
        files.setdefault(file.parent / "__init__.py", "")
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return sorted(files)


@pytest.mark.parametrize(
    "text",
    ["import moco.builder", "from moco import builder", "from moco.builder import MoCo as M",
     "def f():\n    if True:\n        from moco import builder"],
)  # fmt: skip
def test_an_upward_import_is_found(tmp_path, text):
    files = tree(
        tmp_path, {"moco/builder": "import torch", "trainer/log": f"import os\n\n{text}\n"}
    )
    found = imports_of(tmp_path, files)
    line = 5 if "def" in text else 3
    assert f"trainer/log.py:{line}: trainer.log imports moco.builder (floor 3 from 4)" in upward(
        found
    )
    assert not circle(found)


def test_what_is_allowed(tmp_path):
    files = tree(
        tmp_path,
        {
            "main_moco": "from moco import builder, losses",
            "moco/builder": "from . import losses\nfrom .losses import L\nimport models",
            "moco/losses": "import torch",
            "datasets/__init__": "from . import oct\nfrom .images import ImageSet",
            "datasets/oct": "from .images import ImageSet",
            "datasets/images": "from common import errors",
            "common/errors": "",
            "models/conv4": "",
        },
    )
    found = imports_of(tmp_path, files)
    pairs = {(one.module, one.imported) for one in found}
    assert {("main_moco", "moco.builder"), ("datasets", "datasets.oct")} <= pairs
    assert ("moco.builder", "moco.losses") in pairs and ("moco.builder", "models") in pairs
    assert not upward(found) and not circle(found)


@pytest.mark.parametrize(
    "contents, module",
    [
        ({"moco/a": "from . import b", "moco/b": "def f():\n    from .a import g"}, "moco.a"),
        ({"moco/a": "from .b import x", "moco/b": "import moco.c", "moco/c": "import moco.a"},
         "moco.c"),
        # By way of the other package's __init__.
        ({"moco/__init__": "from . import a", "moco/a": "import plots.draw",
          "plots/draw": "from moco.b import x", "moco/b": ""}, "plots.draw"),
        # A package's __init__ that its own module takes something from.
        ({"moco/__init__": "from . import a", "moco/a": "from moco import version"}, "moco.a"),
    ],
)  # fmt: skip
def test_a_circle_is_found(tmp_path, contents, module):
    found = circle(imports_of(tmp_path, tree(tmp_path, contents)))
    assert len(found) > 1 and any(f": {module} imports" in one for one in found), found


def test_a_module_without_a_floor_is_told():
    with pytest.raises(ValueError, match="extra.tool"):
        floor_of("extra.tool")


def test_the_picture_in_architecture_is_up_to_date(imports):
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    assert draw_imports.rewritten(text, imports) == text, "run python scripts/draw_imports.py"


def test_arrows_of_the_picture():
    one = [
        Import("a.x", "b", Path(), 1),
        Import("b", "c.y", Path(), 1),
        Import("a", "c", Path(), 1),
    ]
    assert draw_imports.arrows([*one, Import("c.y", "c", Path(), 1)]) == [("a", "b"), ("b", "c")]
