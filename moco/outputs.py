"""What the outputs of a checkpoint say of it, and whether earlier ones are of the same command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError, listed
from trainer.provenance import provenance
from trainer.settings import Settings, shown

from .checkpoint import made_from, steps


def about_output(settings: Settings, checkpoint: dict) -> dict[str, Any]:
    """Return what every output of a command that encodes with `checkpoint` says of both; compared
    by `already_done`."""
    return {
        "epoch": checkpoint["epoch"],
        "steps": steps(checkpoint),
        "checkpoint_made_by": checkpoint["made_by"],
        "args": settings.record(),
        "made_by": provenance(),
    }


def changes(settings: Settings, given: Mapping[str, Any], previous: dict) -> list[str]:
    """Return in which settings the earlier output `previous` differs, as text.

    Runtime settings are ignored, except for an explicit --amp.
    """
    fields = type(settings).fields()
    try:
        args = type(settings).complete(previous.get("args", {}))
    except ValueError as error:
        return [str(error)]
    current = settings.record()
    names = list(type(settings).names(runtime=False)) + ["amp"] * ("amp" in given)
    return [
        f"{shown(fields[name], args[name])} then, {shown(fields[name], current[name])} now"
        for name in names
        if args[name] != current[name]
    ]


def already_done(
    files: Sequence[Path],
    previous: dict,
    settings: Settings,
    given: Mapping[str, Any],
    checkpoint: dict,
    others: Sequence[str] = (),
) -> bool:
    """Return whether `previous`, read from one of `files`, is the output of this command.

    False, with a note, if only its checkpoint has been trained further. Raises InputError if
    anything else has changed, in the settings or as `others` say: the files would be overwritten.
    """
    changed = [*others, *changes(settings, given, previous)]
    if not made_from(previous, checkpoint):
        before, now = previous.get("epoch"), checkpoint["epoch"]
        further = before == now and steps(checkpoint) > previous.get("steps", 0)
        other = "" if before != now else "further in the next " if further else "another "
        trained = f"a checkpoint of {before} epochs then, {other}of {now} now"
        if not changed and isinstance(before, int) and (now > before or further):
            print(f"note: {files[0]} was made from {trained}; it is made again")
            return False
        changed.append(trained)
    if not changed:
        return True
    raise would_overwrite(files, changed)


def would_overwrite(files: Sequence[Path], changed: Sequence[str]) -> InputError:
    """Return the InputError of a command that differs from that of earlier `files`, as text."""
    return InputError(
        f"{listed(files)} would be overwritten ({listed(changed, 3)}); choose another folder or "
        "add --overwrite"
    )
