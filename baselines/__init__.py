"""The baselines of the papers, one file per method: each trains a model, test.py scores it."""

import importlib
import pkgutil

import common.startup  # noqa: F401


def register_all() -> None:
    """Register the stages of all baselines, so that their checkpoints can be loaded."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
