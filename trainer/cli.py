"""Command-line conventions: flags with hyphens or underscores, errors in one line."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from common.errors import InputError, is_text

from .launch_plan import launched
from .provenance import program
from .signals import Stopped

N = TypeVar("N", int, float)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows each default once, and omits those that are None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Parser that accepts flags with hyphens or underscores and reports errors in one line."""

    def __init__(self, description: str):
        super().__init__(
            program(), description=description, allow_abbrev=False, formatter_class=HelpFormatter
        )

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        normalised = []
        for arg in sys.argv[1:] if args is None else args:
            if not is_text(arg):
                self.error(f"not valid UTF-8: {ascii(arg)}; rename the file or link to it")
            flag, equals, value = arg.partition("=")
            if flag.startswith("--"):
                flag = flag.replace("_", "-")
            normalised.append(flag + equals + value)
        return super().parse_known_args(normalised, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], None], several: bool = False) -> None:
    """Run a script: bad input ends it with a one-line error and exit code 2, Ctrl-C with 130.

    `several`: torchrun or srun may start it as several processes, of which rank 0 prints.
    """
    name = program()
    try:
        launcher, ranks = launched(os.environ)
        if launcher and ranks["world_size"] > 1 and not several:
            raise InputError(
                f"{launcher} started {ranks['world_size']} processes; this script runs in one"
            )
        if ranks.get("first_rank"):
            sys.stdout = open(os.devnull, "w")
            name += f", rank {ranks['first_rank']}"
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be UTF-8
        main()
    except (InputError, OSError) as error:  # OSError: full disk, read-only folder
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def number(kind: type[N], least: float) -> Callable[[str], N]:
    """Return an argparse type for finite numbers of at least `least`."""

    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}") from None
        if not value >= least or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return parse


natural = number(int, 0)
positive = number(int, 1)
