"""What a dataset's files hold: images with their classes, and what was passed over."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class ArrayImage(NamedTuple):
    """Location of an image in an array file: row `row` of `array` in an .npz, or of an .npy."""

    file: Path
    array: str
    row: int

    def __str__(self) -> str:
        return f"{self.array}[{self.row}] of {self.file}"


class Row(NamedTuple):
    """An image of a dataset; images of one `group` show one patient or lesion."""

    id: str
    path: Path | ArrayImage
    label: str
    group: str | None = None


@dataclass
class Listing:
    """The images of a dataset, and the names of files and folders passed over, by reason."""

    rows: list[Row] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def pass_over(self, reason: str, *names: str) -> None:
        """Record that `names` are no images of the dataset, because of `reason`."""
        if names:
            self.passed_over.setdefault(reason, []).extend(names)
