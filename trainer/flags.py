"""The command line of a `Settings` class: its flags, and what was given."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from .cli import ArgumentParser
from .settings import Field, Settings


def parser_of(cls: type[Settings]) -> ArgumentParser:
    """Build the parser of a `Settings` class; its result has no flags that were not given."""
    parser = ArgumentParser(cls.description)
    groups: dict[type, Any] = {cls: parser}
    for field in cls.fields().values():
        if field.group not in groups and not field.about.positional:
            title = (field.group.__doc__ or "").partition("\n")[0].rstrip(".")
            groups[field.group] = parser.add_argument_group(title)
        _add(parser if field.about.positional else groups[field.group], field, cls)
    return parser


def _add(group: Any, field: Field, cls: type[Settings]) -> None:
    about = field.about
    options: dict[str, Any] = {"default": argparse.SUPPRESS}
    required = field.default is dataclasses.MISSING
    if field.kind is bool:
        options["action"] = argparse.BooleanOptionalAction if about.negatable else "store_true"
    else:
        options |= {"type": field.read, "metavar": about.metavar}
        if field.choices:
            options["metavar"] = about.metavar or "{" + ",".join(field.choices) + "}"
        if field.several:
            options["nargs"] = "*" if isinstance(field.default, list) else "+"
            if options["nargs"] == "+":  # given twice, it has the values of both
                options["action"] = "extend"
    options["help"] = about.help.replace("%", "%%") + _default(field, cls).replace("%", "%%")
    if about.positional:
        if about.flags:
            options["help"] += f"; also as {about.flags[0]} {field.flag}"
            also = {**options, "dest": _also(field), "help": argparse.SUPPRESS}
            group.add_argument(*about.flags, **also)
        if about.flags or not required:
            # argparse would pass the default SUPPRESS of a positional argument to its type.
            options |= {"nargs": "?", "default": None}
        group.add_argument(field.name, **options)
        return
    names = about.flags if field.flag in about.flags else (*about.flags, field.flag)
    group.add_argument(*names, dest=field.name, required=required, **options)


def _default(field: Field, cls: type[Settings]) -> str:
    """Return the default as the help shows it."""
    if "(default" in field.about.help or field.default is dataclasses.MISSING:
        return ""
    if cls.inherits and field.about.inherited:
        return f" (default: {cls.inherits}'s)"
    if field.about.auto:
        return f" (default: {field.about.auto})"
    if field.default is None or (field.kind is bool and not field.default):
        return ""
    value = field.default
    return f" (default: {' '.join(map(str, value)) if isinstance(value, list) else value})"


def parse(cls: type[Settings], argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings given on the command line, by name."""
    parser = parser_of(cls)
    values = vars(parser.parse_args(argv))
    for name, field in cls.fields().items():
        if not (field.about.positional and field.about.flags):
            continue
        given = [v for v in (values.pop(name), values.pop(_also(field), None)) if v is not None]
        flag = f"{field.about.flags[0]} {given[-1]}" if given else ""
        if len(set(given)) > 1:
            parser.error(f"{field.flag} is {given[0]} and also {flag}; give one of them")
        if not given and field.default is dataclasses.MISSING:
            parser.error(f"the following arguments are required: {field.flag}")
        values[name] = given[0] if given else None
    return {name: value for name, value in values.items() if value is not None}


def _also(field: Field) -> str:
    return f"{field.name} as {field.about.flags[0]}"
