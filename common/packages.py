"""Optional packages, which may be missing or broken."""

import importlib
from typing import Any

from .errors import InputError, reason


def optional(module: str, package: str) -> Any:
    """Return a module of an optional `package`, or None. A note says so if the package is installed
    but cannot be imported."""
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except Exception as error:  # a broken package may raise any
        if not _is_missing(error, package):
            print(f"note: going on without {package}, which is installed but broken: {_why(error)}")
        return None


def required(module: str, package: str, purpose: str) -> Any:
    """Return a module of an optional `package`. Raises InputError, which starts with `purpose`
    ("figures need"), if it is missing or broken."""
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except Exception as error:
        if _is_missing(error, package):
            raise InputError(f"{purpose} {package}: pip install {package}") from None
        raise InputError(
            f"{purpose} {package}, which is installed but broken: {_why(error)}; repair it with "
            f"pip install --force-reinstall {package}"
        ) from error


def _is_missing(error: Exception, package: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == package


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"
