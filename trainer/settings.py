"""Settings as frozen dataclasses, a field a flag: the one place where a setting is described.

From a field come its flag with default, type, range and help; whether a resumed run may change it;
whether a later stage inherits it; and the check of a value that a file holds.
"""

import argparse
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from common.errors import InputError

from .cli import ArgumentParser

INHERITANCE = (None, "default", "always")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field's flag needs to be told beyond its name, type and default.

    `flags`: other spellings, the long one is the one that the help shows; `positional`: none at
    all. `choices`: the values there are, where the annotation does not list them. `low`, `high`,
    `below`: the range, `below` excluded. `fixed`: a resumed run may not change it. `inherited`:
    "default", a stage that comes later takes it over where it is not told otherwise; "always", it
    must. `runtime`: it changes where and how fast a command runs, not what it makes. `auto`:
    decided by the machine where nobody says, as the text tells.
    """

    help: str
    flags: tuple[str, ...] = ()
    positional: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    below: float | None = None
    metavar: str | None = None
    negatable: bool = False
    fixed: bool = False
    inherited: str | None = None
    runtime: bool = False
    auto: str | None = None

    def range(self) -> str:
        """Return the range in words."""
        if self.high is None and self.below is None:
            return f"at least {self.low}"
        end = f"{self.high}]" if self.below is None else f"{self.below})"
        return f"in [{self.low}, {end}"

    def holds(self, value: float) -> bool:
        """Tell whether a number is within the range."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
            and not (isinstance(value, float) and not math.isfinite(value))
        )


def setting(default: Any = dataclasses.MISSING, help: str = "", **how: Any) -> Any:
    """Describe a field of a `Settings` class. Without a default the flag is required."""
    about = Setting(help, **how)
    assert about.inherited in INHERITANCE, about.inherited
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"is": about})
    return dataclasses.field(default=default, metadata={"is": about})


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a `Settings` class, as its annotation and its `setting` describe it."""

    name: str
    about: Setting
    default: Any  # MISSING where the flag is required
    kind: type  # int, float, bool, str, Path
    choices: tuple[str, ...] = ()
    several: bool = False
    optional: bool = False
    group: type = object

    @property
    def flag(self) -> str:
        """The flag as the help shows it."""
        if self.about.positional:
            return self.name.upper()
        long = [flag for flag in self.about.flags if flag.startswith("--")]
        return long[0] if long else "--" + self.name.replace("_", "-")

    def read(self, text: str) -> Any:
        """Turn a word of the command line into a value, one of several perhaps."""
        try:
            value = self.kind(text)
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None
        if problem := self._problem(value):
            raise argparse.ArgumentTypeError(problem)
        return value

    def check(self, value: Any) -> Any:
        """Return the value that a file holds for this setting, or raise ValueError."""
        required = self.default is dataclasses.MISSING  # a path, which nobody else has
        if value is None and (self.optional or self.about.auto or required):
            return value
        parts = value if self.several and isinstance(value, list | tuple) else [value]
        kinds = {float: (int, float), Path: (str, Path)}.get(self.kind, (self.kind,))
        wrong = self.several != isinstance(value, list | tuple)
        wrong |= any(
            not isinstance(part, kinds) or (isinstance(part, bool) and self.kind is not bool)
            for part in parts
        )
        if wrong:
            raise ValueError(f"its {self.flag} is {value!r}")
        for part in parts:
            if problem := self._problem(part):
                raise ValueError(f"its {self.flag} {problem}")
        if self.kind is Path:
            return Path(value)
        return list(value) if self.several else value

    def _problem(self, value: Any) -> str | None:
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}, got {value}"
        if self.kind in (int, float) and not self.about.holds(value):
            return f"must be {self.about.range()}, got {value}"
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings; a script's are the groups that it inherits from."""

    description: ClassVar[str] = ""  # the script's, for --help
    inherits: ClassVar[str] = ""  # whose settings this stage takes over: "the teacher"

    @classmethod
    @functools.cache
    def fields(cls) -> dict[str, Field]:
        """Return the described fields by name, in the order of the groups."""
        hints = typing.get_type_hints(cls)
        group_of = {
            name: base
            for base in cls.__mro__  # the last one is the class that first described it
            for name in vars(base).get("__annotations__", {})
        }
        by_name = {field.name: field for field in dataclasses.fields(cls)}
        order = sorted(by_name, key=lambda name: cls.__mro__.index(group_of[name]))  # stable
        found = {}
        for name in order:
            field = by_name[name]
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            about = field.metadata["is"]
            kind, choices, several, optional = _annotation(hints[name])
            found[name] = Field(
                name, about, default, kind, about.choices or choices, several, optional,
                group_of[name],
            )  # fmt: skip
        return found

    @classmethod
    def names(cls, **wanted: Any) -> tuple[str, ...]:
        """Return the names of the settings of which each of `wanted` holds (`fixed=True`)."""
        return tuple(
            name
            for name, field in cls.fields().items()
            if all(getattr(field.about, key) == value for key, value in wanted.items())
        )

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values`, which a file holds, with defaults for the settings it does not have.

        Settings that this class does not know are left out. Raises ValueError, with the flag, for a
        value that the command line could not give.
        """
        found = {}
        for name, field in cls.fields().items():
            default = None if field.default is dataclasses.MISSING else field.default
            value = field.check(values[name]) if name in values else None
            found[name] = default if value is None else value
        return _plain(found)

    def record(self) -> dict[str, Any]:
        """Return the settings as plain values, for a checkpoint or a log."""
        return _plain({name: getattr(self, name) for name in self.fields()})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


S = TypeVar("S", bound=Settings)


def with_default(cls: type[Settings], name: str, default: Any) -> Any:
    """Describe a field as `cls` does, with another default."""
    return dataclasses.field(default=default, metadata={"is": cls.fields()[name].about})


def _annotation(hint: Any) -> tuple[type, tuple[str, ...], bool, bool]:
    """Take an annotation apart: the kind of one value, its choices, whether there may be several,
    or none."""
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if several := typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint), several, optional
    return hint, (), several, optional


def parser_of(cls: type[Settings]) -> ArgumentParser:
    """Build the command line of a `Settings` class. What is not given stays out of the result."""
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
    how: dict[str, Any] = {"default": argparse.SUPPRESS}
    required = field.default is dataclasses.MISSING
    if field.kind is bool:
        how["action"] = argparse.BooleanOptionalAction if about.negatable else "store_true"
    else:
        how |= {"type": field.read, "metavar": about.metavar}
        if field.choices:
            how["metavar"] = about.metavar or "{" + ",".join(field.choices) + "}"
        if field.several:
            how["nargs"] = "*" if isinstance(field.default, list) else "+"
    how["help"] = about.help.replace("%", "%%") + _default(field, cls).replace("%", "%%")
    if about.positional:
        if not required:
            # Of a positional one, argparse would have the type read what stands for no default.
            how |= {"nargs": "?", "default": None}
        group.add_argument(field.name, **how)
        return
    names = about.flags if field.flag in about.flags else (*about.flags, field.flag)
    group.add_argument(*names, dest=field.name, required=required, **how)


def _default(field: Field, cls: type[Settings]) -> str:
    """Tell the default as the help does."""
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
    """Return what a command line says, by name; settings that it leaves out are not in there."""
    found = vars(parser_of(cls).parse_args(argv))
    return {name: value for name, value in found.items() if value is not None}


def resolve(
    cls: type[S],
    given: Mapping[str, Any],
    auto: Mapping[str, Any] | None = None,
    inherited: Mapping[str, Any] | None = None,
    where: Path | str = "",
) -> S:
    """Return the settings of a command: what is `given`; else what is `inherited` from the stage
    before, whose settings the file `where` holds; else the machine's choice, `auto`; else defaults.

    Raises InputError if something given contradicts what must be inherited.
    """
    auto, inherited = auto or {}, inherited or {}
    values = {}
    for name, field in cls.fields().items():
        theirs = inherited.get(name) if field.about.inherited else None
        if field.about.inherited == "always" and theirs is not None and name in given:
            require_same_setting(field, given[name], theirs, where)
        if name in given:
            values[name] = given[name]
        elif theirs is not None:
            values[name] = theirs
        elif name in auto:
            values[name] = auto[name]
        else:
            assert field.default is not dataclasses.MISSING, name
            values[name] = field.default
    return cls(**values)


def require_same_setting(field: Field, given: Any, recorded: Any, where: Path | str) -> None:
    """Raise InputError, with both sides, if a setting differs from what a file was made with."""
    if given != recorded:
        raise InputError(
            f"{shown(field, given)} conflicts with {where}, created with {shown(field, recorded)}"
        )


def shown(field: Field, value: Any) -> str:
    """Return a setting as one would type it."""
    if field.kind is bool:
        return field.flag if value else field.flag.replace("--", "--no-", 1)
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{field.flag} {text}"


def require_fixed(
    cls: type[Settings],
    given: Mapping[str, Any],
    recorded: Mapping[str, Any],
    where: Path | str,
    names: Sequence[str] | None = None,
) -> None:
    """Raise InputError if a setting that a resumed run may not change is other than in the file
    `where`, of which `recorded` are the settings; one that it does not have was the default.

    `names`: those alone, where the file does not tell the others.
    """
    recorded = cls.complete(recorded)
    for name in cls.names(fixed=True) if names is None else names:
        require_same_setting(cls.fields()[name], given[name], recorded[name], where)
