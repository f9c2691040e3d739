"""Command-line conventions: flags with hyphens or underscores, errors in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from common.errors import InputError, is_text
from common.failures import one_line, print_any_name
from common.names import nearest

from .launchers import launched
from .provenance import program
from .signals import Stopped


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
        flags = {flag.lstrip("-"): flag for flag in self._option_string_actions}
        self.misspelt: dict[str, str] = {}
        for arg in sys.argv[1:] if args is None else args:
            if not is_text(arg):
                self.error(f"not valid UTF-8: {ascii(arg)}; rename the file or link to it")
            flag, equals, value = arg.partition("=")
            if flag.startswith("--"):
                flag = flag.replace("_", "-")
                near = None if flag[2:] in flags else nearest(flag[2:], flags)
                self.misspelt |= {flag: flags[near]} if near else {}
            normalised.append(flag + equals + value)
        return super().parse_known_args(normalised, namespace)

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected at least one argument"):
            message += "; a value that starts with a dash must be renamed"
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            message += "".join(
                f"; nearest to {flag}: {near}" for flag, near in self.misspelt.items()
            )
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], None], several: bool = False) -> None:
    """Run a script: any error ends it with one line, Ctrl-C with exit code 130.

    The exit code is 2 for bad input and known failures of the machine, and 1 for an unexpected
    error, whose traceback is in a file that the line names. `several`: torchrun or srun may start
    it as several processes, of which rank 0 prints.
    """
    use_utf8()
    name = program()
    with one_line(name):
        launcher, ranks = launched()
        if launcher and ranks["world_size"] > 1 and not several:
            raise InputError(
                f"{launcher} started {ranks['world_size']} processes; this script runs in one"
            )
    if ranks.get("first_rank"):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        name += f", rank {ranks['first_rank']}"
    print_any_name()
    with one_line(name):
        try:
            main()
        except Stopped as stop:
            print(stop, file=sys.stderr)
            sys.exit(stop.exit_code)


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where the locale has another encoding, in
    which file names and arguments would be read wrongly."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
