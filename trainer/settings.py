"""Settings as frozen dataclasses with one field per flag.

A field defines its flag's default, type, range and help; whether a resumed run may change it;
whether a later stage inherits it; and the validation of values read from files.
"""

import argparse
import copy
import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from common.errors import InputError
from common.names import clean


@dataclasses.dataclass(frozen=True)
class Setting:
    """What describes a flag besides its field's name, type and default.

    `flags`: other spellings, of which the help shows the long one; `positional`: an argument
    without a flag or, if it has `flags`, with one or without. `choices`: the valid values, if the
    annotation is not a Literal; one that ends in /NAME stands for any name. `low`, `high`,
    `below`: the range, `below` excluded. `fixed`: a resumed run may not change it. `inherited`:
    "default", a later stage uses it unless given another value; "always", it must use it.
    `runtime`: affects where and how fast a command runs, not its results. `former`: its field's
    name in older files. `auto`: the default depends on the machine, as this text says. `name`: of a
    class or column, compared as people read it (`common.names.clean`).
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
    former: str | None = None
    auto: str | None = None
    name: bool = False

    def range(self) -> str:
        """Return the range as text."""
        if self.high is None and self.below is None:
            return f"at least {self.low}"
        upper = f"{self.high}]" if self.below is None else f"{self.below})"
        return f"in [{self.low}, {upper}"

    def contains(self, value: float) -> bool:
        """Return whether a number is within the range and finite."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
            and not (isinstance(value, float) and not math.isfinite(value))
        )


def setting(default: Any = dataclasses.MISSING, help: str = "", **options: Any) -> Any:
    """Describe a field of a `Settings` class. Without a default the flag is required."""
    about = Setting(help, **options)
    assert about.inherited in (None, "default", "always"), about.inherited
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"setting": about})
    return dataclasses.field(default=default, metadata={"setting": about})


# A setting of the training recipe: a resumed run may not change it, and a later stage takes it over
# unless told otherwise.
recipe = functools.partial(setting, fixed=True, inherited="default")
# A setting that binds resumed runs and all later stages.
binding = functools.partial(setting, fixed=True, inherited="always")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a `Settings` class, from its annotation and its `setting`."""

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
            return self.about.metavar or self.name.upper()
        long = [flag for flag in self.about.flags if flag.startswith("--")]
        return long[0] if long else "--" + self.name.replace("_", "-")

    def read(self, text: str) -> Any:
        """Parse one value from the command line; raises ArgumentTypeError if it is invalid."""
        try:
            value = clean(text) if self.about.name else self.kind(text)
        except ValueError:
            expected = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}") from None
        if problem := self._problem(value):
            raise argparse.ArgumentTypeError(problem)
        return value

    def check(self, value: Any) -> Any:
        """Return a value read from a file, or raise ValueError if it is invalid."""
        required = self.default is dataclasses.MISSING  # a path
        if value is None and (self.optional or self.about.auto or required):
            return value
        if self.several and self.kind is Path and isinstance(value, str | Path):
            value = [value]  # an older file has one path for --predict
        if self.several != isinstance(value, list | tuple):
            raise ValueError(f"{self.flag} is {value!r}")
        parts = value if self.several else [value]
        kinds = {float: (int, float), Path: (str, Path)}.get(self.kind, (self.kind,))
        for part in parts:
            if not isinstance(part, kinds) or (isinstance(part, bool) and self.kind is not bool):
                raise ValueError(f"{self.flag} is {value!r}")
            if problem := self._problem(part):
                raise ValueError(f"{self.flag} {problem}")
        if self.about.name or self.kind is Path:
            parts = [clean(part) if self.about.name else Path(part) for part in parts]
        return parts if self.several else parts[0]

    def _problem(self, value: Any) -> str | None:
        if self.choices and not any(_is_choice(value, choice) for choice in self.choices):
            return f"must be one of {', '.join(self.choices)}, got {value}"
        if self.kind in (int, float) and not self.about.contains(value):
            return f"must be {self.about.range()}, got {value}"
        return None


def at_least(low: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least `low`."""
    return Field("", Setting("", low=low), None, int).read


natural, positive = at_least(0), at_least(1)


def _is_choice(value: str, choice: str) -> bool:
    prefix = choice.removesuffix("NAME") if choice.endswith("/NAME") else None
    return value == choice if prefix is None else value.startswith(prefix) and value != prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings; each base class of a script's settings is a group of its flags."""

    description: ClassVar[str] = ""  # of the script, for --help
    inherits: ClassVar[str] = ""  # whose settings this stage inherits: "the teacher"

    @classmethod
    @functools.cache
    def fields(cls) -> dict[str, Field]:
        """Return the fields by name, ordered by group."""
        hints = typing.get_type_hints(cls)
        group_of = {
            name: base
            for base in cls.__mro__  # the last one is the class that first defined it
            for name in inspect.get_annotations(base)
        }
        fields = {}
        for field in dataclasses.fields(cls):
            default, about = field.default, field.metadata["setting"]
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            kind, choices, several, optional = _annotation(hints[field.name])
            fields[field.name] = Field(
                field.name, about, default, kind, about.choices or choices, several, optional,
                group_of[field.name],
            )  # fmt: skip
        by_group = sorted(fields.values(), key=lambda field: cls.__mro__.index(field.group))
        return {field.name: field for field in by_group}

    @classmethod
    def names(cls, **attributes: Any) -> tuple[str, ...]:
        """Return the names of the settings with these attributes, such as `fixed=True`."""
        return tuple(
            name
            for name, field in cls.fields().items()
            if all(getattr(field.about, key) == value for key, value in attributes.items())
        )

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values`, read from a file, with defaults for missing settings.

        Drops unknown settings. Raises ValueError, naming the flag, for values that the command line
        would not accept.
        """
        completed: dict[str, Any] = {}
        for name, field in cls.fields().items():
            default = None if field.default is dataclasses.MISSING else field.default
            recorded = next((key for key in (name, field.about.former) if key in values), None)
            value = None if recorded is None else field.check(values[recorded])
            completed[name] = _plain(default if value is None else value)
        return completed

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON types, for a checkpoint or a log."""
        return {name: _plain(getattr(self, name)) for name in self.fields()}

    def require_match(self, recorded: Mapping[str, Any], where: Path | str) -> None:
        """Raise InputError, showing both values, if a setting other than None differs from that
        `recorded` in the file `where`."""
        for name, value in recorded.items():
            if (given := getattr(self, name)) is not None:
                require_same_setting(self.fields()[name], given, value, where)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


S = TypeVar("S", bound=Settings)


def with_default(cls: type[Settings], name: str, default: Any) -> Any:
    """Redefine a field of `cls` with another default."""
    return dataclasses.field(default=default, metadata={"setting": cls.fields()[name].about})


def _annotation(hint: Any) -> tuple[type, tuple[str, ...], bool, bool]:
    """Return the type of one value, its choices, and whether the annotation is a list and
    optional."""
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if several := typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint), several, optional
    return hint, (), several, optional


def resolve(
    cls: type[S],
    given: Mapping[str, Any],
    auto: Mapping[str, Any] | None = None,
    inherited: Mapping[str, Any] | None = None,
    where: Path | str = "",
) -> S:
    """Return the settings of a command: values `given`, else `inherited` from the previous stage's
    file `where`, else `auto` for this machine, else defaults.

    Raises InputError if a given value conflicts with one that must be inherited.
    """
    auto, inherited = auto or {}, inherited or {}
    values = {}
    for name, field in cls.fields().items():
        recorded = inherited.get(name) if field.about.inherited else None
        if field.about.inherited == "always" and recorded is not None and name in given:
            require_same_setting(field, given[name], recorded, where)
        if name in given:
            values[name] = given[name]
        elif recorded is not None:
            values[name] = recorded
        elif name in auto:
            values[name] = auto[name]
        else:
            assert field.default is not dataclasses.MISSING, name
            values[name] = copy.copy(field.default)  # of a list each has its own
    return cls(**values)


def require_same_setting(field: Field, given: Any, recorded: Any, where: Path | str) -> None:
    """Raise InputError, showing both values, if a setting differs from the file's."""
    if given != recorded:
        now, then = shown(field, given), shown(field, recorded)
        then = then if then.startswith("without") else f"with {then}"
        raise InputError(f"{now} conflicts with {where}, created {then}")


def shown(field: Field, value: Any) -> str:
    """Return a setting as typed on the command line; `without --flag` if there is no --no-flag, or
    the value is None."""
    if value is None:
        return f"without {field.flag}"
    if field.kind is bool:
        no = "--no-" if field.about.negatable else "without --"
        return field.flag if value else field.flag.replace("--", no, 1)
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{field.flag} {text}"


def require_fixed(
    cls: type[Settings],
    given: Mapping[str, Any],
    recorded: Mapping[str, Any],
    where: Path | str,
    names: Sequence[str] | None = None,
) -> None:
    """Raise InputError if a setting that a resumed run may not change differs from `recorded`, the
    settings in the file `where`; missing ones have their defaults.

    `names`: check only these, if the file does not have the others.
    """
    recorded = cls.complete(recorded)
    for name in cls.names(fixed=True) if names is None else names:
        field = cls.fields()[name]
        if recorded[name] is not None or not field.about.auto:  # an older file may not say
            require_same_setting(field, given[name], recorded[name], where)
