"""Speed, memory and accuracy, compared with a plain implementation."""

import argparse
import json
from pathlib import Path

import common.startup  # noqa: F401

from common.files import write_utf8


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that shows a module's docstring as it stands."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=formatter)


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the classes of own images."""
    for part in ("base", "rare"):
        help = f"{part} classes of own images (default: the checkpoint's)"
        parser.add_argument(
            f"--{part}-classes", nargs="+", action="extend", metavar="CLASS", help=help
        )


def classes_of(args: argparse.Namespace, checkpoint: dict) -> list[list[str] | None]:
    """Return base and rare classes, of the flags or else of the checkpoint's run."""
    names = ("base_classes", "rare_classes")
    return [getattr(args, name) or checkpoint["args"].get(name) for name in names]


def settings_of(args: argparse.Namespace) -> dict:
    """Return the flags' values that a file of results records."""
    return {name: value for name, value in vars(args).items() if name != "out"}


def save(result: dict, out: Path | None) -> None:
    """Write the results so far as a JSON file, if one is asked for."""
    if out:
        write_utf8(out, json.dumps(result, indent=1))
