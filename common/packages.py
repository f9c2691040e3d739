"""Optional packages, which may be missing or broken."""

import importlib
from typing import Any

from .errors import InputError, reason


def required(module: str, package: str, purpose: str) -> Any:
    """Return a module of an optional `package`. Raises InputError, which starts with `purpose`
    ("figures need"), if it is missing or broken."""
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except Exception as error:  # a broken package may raise any
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise InputError(f"{purpose} {package}: pip install {package}") from None
        raise InputError(
            f"{purpose} {package}, which is installed but broken: {type(error).__name__}: "
            f"{reason(error)}; repair it with pip install --force-reinstall {package}"
        ) from error
