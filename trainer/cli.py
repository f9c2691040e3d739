"""The command line's conventions: flags of either spelling, and a mistake answered in one line."""

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
    """Shows each default once, and none where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Takes every flag with hyphens, as it is added, or underscores, and answers a mistake with one
    line."""

    def __init__(self, description: str):
        super().__init__(
            program(), description=description, allow_abbrev=False, formatter_class=HelpFormatter
        )

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = []
        for word in sys.argv[1:] if args is None else args:
            if not is_text(word):
                self.error(f"a name that is not UTF-8: {ascii(word)}; rename it, or link to it")
            flag, equals, value = word.partition("=")
            if flag.startswith("--"):
                flag = flag.replace("_", "-")
            words.append(flag + equals + value)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], None], several: bool = False) -> None:
    """Run a script: bad input ends it with one line and exit code 2, Ctrl-C with 130.

    `several`: torchrun or srun may start it as several processes; the first one speaks for all.
    """
    name = program()
    try:
        by, found = launched(os.environ)
        if by and found["processes"] > 1 and not several:
            raise InputError(f"{by} has started {found['processes']} of it; it is one process")
        if found.get("first"):
            sys.stdout = open(os.devnull, "w")
            name += f", process {found['first']}"
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
        main()
    except (InputError, OSError) as error:  # OSError: a full disk, a folder that is read-only
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def number(kind: type[N], least: float) -> Callable[[str], N]:
    """Return an argparse type: a number from `least` on."""

    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None
        if not value >= least or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return parse


natural = number(int, 0)
positive = number(int, 1)
