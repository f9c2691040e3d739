"""Shared fixtures: a tiny synthetic data set, and the four scripts run on it once."""

import contextlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="test-cache-")  # before datasets reads it

import baselines
from datasets import papsmear, synthetic
from moco.config import STAGES, Distillation, Labelling, Pretraining, Testing
from trainer import cli

REPOSITORY = Path(__file__).resolve().parent.parent
GPU_TESTS = REPOSITORY / "tests" / "gpu"  # all others run on the CPU
# Small enough for a test: the global batch is 8, in two BatchNorm groups.
TINY = "--arch conv4 --image-size 32 -b 8 --moco-k 32 --bn-groups 2 -j 0".split()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    if not all(path.is_relative_to(GPU_TESTS) for path in asked_for(config)):
        # Set before CUDA is initialised; scripts started by tests inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Parallel test processes with a thread per core each would slow each other down.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        # Slow tests first, to balance the load of parallel processes.
        items.sort(key=lambda item: "slow" not in item.keywords)
    else:
        skip = pytest.mark.skip(reason="slow; --all runs it")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def asked_for(config) -> list[Path]:
    """Return the test paths given on the command line or in the settings."""
    start = config.invocation_params.dir
    return [(start / word.partition("::")[0]).resolve() for word in config.args]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data folder in ISIC's layout: 35 base and 25 rare images of 40×40."""
    root = tmp_path_factory.mktemp("data")
    synthetic.make(root, base=34, rare=26, size=40, seed=0)
    return root


@pytest.fixture(scope="session")
def smears(tmp_path_factory) -> Path:
    """A data folder in Pap-smear's layout: 32 base and 18 rare pictures of 40×40."""
    root = tmp_path_factory.mktemp("smears")
    generator = np.random.default_rng(0)
    for name, look in zip(papsmear.CLASSES, synthetic.LOOKS.values()):
        (root / name).mkdir()
        for number in range(8 if name in papsmear.BASE_CLASSES else 6):
            synthetic.draw_lesion(look, generator, 40).save(root / name / f"{number}.png")
    return root


baselines.register_all()
SETTINGS = {
    "main_moco": Pretraining,
    "generate_pseudo": Labelling,
    "main_distill": Distillation,
    "test": Testing,
    **{
        stage.settings.__module__: stage.settings
        for stage in STAGES.values()
        if stage.settings.__module__.startswith("baselines.")
    },
}


def load_script(name: str):
    """Import a script by path, as `import test` would import the standard library's."""
    if "." in name:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def call(name: str, *argv: object) -> None:
    """Run a script's main in this process, without `cli.run`."""
    load_script(name).main([str(arg) for arg in argv])


def shell(name: str, *argv: object) -> subprocess.CompletedProcess:
    """Run a script in a subprocess."""
    command = [sys.executable, f"{name}.py", *(str(arg) for arg in argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=300
    )


def states_equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def refused(capsys, monkeypatch, name: str, *argv: object) -> str:
    """Return the one-line error of a script that must refuse `argv` with exit code 2."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *(str(arg) for arg in argv)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(load_script(name).main)
    stderr = capsys.readouterr().err.strip()
    assert stop.value.code == 2, stderr
    assert len(stderr.splitlines()) == 1, stderr
    return stderr


@dataclass
class Chain:
    """The output folders of the four scripts, and what they printed."""

    root: Path
    printed: dict[str, str]

    @property
    def pretrained(self) -> Path:
        return self.root / "a"

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def student(self) -> Path:
        return self.root / "d"


def chain_of(data: Path, root: Path) -> dict[str, list[object]]:
    """Return the arguments of the four scripts, with all output in `root`."""
    a, labels, d = root / "a", root / "labels", root / "d"
    return {
        "main_moco": [data, "--model_path", a, *TINY, "--epochs", 2, "--knn-every", 1],
        "generate_pseudo": (
            f"--arch conv4 --n_way 3 --k_shot 2 --k_query 15 --resume {a} --datadir {data} "
            f"--savedir {labels} -j 0"
        ).split(),
        "main_distill": (
            f"--epochs 2 -b 8 -j 0 --bn-groups 2 {data} --model_path {d} --savedir {labels} "
            "--p_label --n_way 3 --k_shot 2"
        ).split(),
        "test": f"--arch conv4 --n_way 3 --k_shot 2 --load_cla --resume {d} {data} -j 0".split(),
    }


@pytest.fixture(scope="session")
def chain(data, tmp_path_factory) -> Chain:
    """Run the four scripts in this process."""
    root = tmp_path_factory.mktemp("chain")
    printed = {}
    for name, argv in chain_of(data, root).items():
        sys_argv = [f"{name}.py", *map(str, argv)]  # recorded in log and checkpoint
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as stdout,
        ):
            patch.setattr(sys, "argv", sys_argv)
            call(name, *argv)
        printed[name] = stdout.getvalue()
    return Chain(root, printed)
