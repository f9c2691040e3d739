"""What the papers compare with, a file a method: each trains, test.py scores."""

import importlib
import pkgutil


def register_all() -> None:
    """Make the stages of all baselines known, so that their checkpoints can be read."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
