"""The command line's conventions: flags of either spelling, and a mistake answered in one line."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError, is_text

from .launch_plan import launched
from .signals import Stopped


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default once, and none where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Takes every flag with hyphens or underscores, and answers a mistake with one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def parse_known_args(self, args=None, namespace=None):
        spelling = {name.replace("_", "-"): name for name in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            if not is_text(word):
                self.error(f"a name that is not UTF-8: {ascii(word)}; rename it, or link to it")
            flag, equals, value = word.partition("=")
            if flag.startswith("--"):
                flag = spelling.get(flag.replace("_", "-"), flag)
            words.append(flag + equals + value)
        return super().parse_known_args(words, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], None], several: bool = False) -> None:
    """Run a script: bad input ends it with one line and exit code 2, Ctrl-C with 130.

    `several`: torchrun or srun may start it as several processes; the first one speaks for all.
    """
    name = Path(sys.argv[0]).name
    try:
        by, found = launched(os.environ)
        if by and found["processes"] > 1 and not several:
            raise InputError(f"{by} has started {found['processes']} of it; it is one process")
        if found.get("first"):
            sys.stdout = open(os.devnull, "w")
            name += f", process {found['first']}"
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


def number(kind: type, least: float, most: float = float("inf"), open_end: bool = False):
    """An argparse type: a number from `least` to `most` (below `most`, if `open_end`)."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of this kind") from None
        if not least <= value <= most or (open_end and value == most) or value == math.inf:
            raise argparse.ArgumentTypeError(f"{text} is out of range")
        return value

    return parse


def require_sound(parser: ArgumentParser, values: dict) -> None:
    """Raise ValueError if one of `values`, the settings that a file says that `parser` gave, is
    none that it can give; paths, and what was not told, None, are passed over."""
    for action in parser._actions:  # argparse tells them to nobody else
        value = values.get(action.dest)
        if action.type is Path or value is None:
            continue
        several = isinstance(value, list)
        try:
            sound = several == (action.nargs in ("*", "+"))
            for one in value if several else [value]:
                read = action.type(str(one)) if action.type else one
                kind = bool if action.nargs == 0 else str if action.type is None else object
                sound &= (
                    read == one and isinstance(one, kind) and read in (action.choices or [read])
                )
        except argparse.ArgumentTypeError:
            sound = False
        if not sound:
            raise ValueError(f"its {action.dest} is {value!r}")


natural = number(int, 0)
positive = number(int, 1)
