"""ISIC 2018 Task 3 (HAM10000): the official download, unzipped, as it is."""

import csv
from collections import Counter
from pathlib import Path

from .files import InputError, listed

NAME = "isic2018"
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")  # A_1, A_2, A_3 of the papers' tables
COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
IMAGES = "ISIC2018_Task3_Training_Input"
GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
LAYOUT = f"{IMAGES}/ISIC_*.jpg and {GROUND_TRUTH}/{GROUND_TRUTH}.csv"


def recognises(root: Path) -> bool:
    return (root / IMAGES).exists() or (root / GROUND_TRUTH).exists()


def rows(root: Path) -> list[tuple[str, Path, str]]:
    """(id, path, class) of every image in the ground truth.

    Raises InputError for a missing file, other columns, or a row that is not one-hot.
    """
    table = root / GROUND_TRUTH / f"{GROUND_TRUTH}.csv"
    if not table.is_file():
        raise InputError(f"the ground truth is missing: {table}")
    if not (root / IMAGES).is_dir():
        raise InputError(f"the image folder is missing: {root / IMAGES}")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            found = list(_parse(csv.DictReader(file), table, root / IMAGES))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is not a CSV file: {error}") from error
    twice = [name for name, times in Counter(name for name, _, _ in found).items() if times > 1]
    if twice:
        raise InputError(f"{table} lists more than once: {listed(twice)}")
    present = {path.name for path in (root / IMAGES).iterdir()}
    missing = [path for _, path, _ in found if path.name not in present]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(found)} images in {table.name} are missing: "
            + listed(missing)
        )
    return found


def _parse(reader: csv.DictReader, table: Path, folder: Path):
    if set(reader.fieldnames or ()) != set(COLUMNS):
        raise InputError(
            f"{table} has the columns {','.join(reader.fieldnames or ())}; "
            f"expected {','.join(COLUMNS)}"
        )
    for row in reader:
        try:
            chosen = [name for name in COLUMNS[1:] if float(row[name]) == 1]
            rest = [name for name in COLUMNS[1:] if float(row[name]) == 0]
        except (TypeError, ValueError):
            chosen, rest = [], []
        if len(chosen) != 1 or len(rest) != len(COLUMNS) - 2 or not row["image"] or None in row:
            raise InputError(
                f"{table}, line {reader.line_num}: expected an image id, a single 1 and zeros"
            )
        yield row["image"], folder / f"{row['image']}.jpg", chosen[0]


def lesions(root: Path) -> dict[str, str]:
    """The lesion that each image shows, by image id, from the official lesion groupings.

    Raises InputError if their file is missing, or has other columns.
    """
    table = next(
        (p for p in (root / GROUPINGS, root / GROUND_TRUTH / GROUPINGS) if p.is_file()), None
    )
    if table is None:
        raise InputError(f"the lesion groupings are missing: {root / GROUPINGS}")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            return {row["image"]: row["lesion_id"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} has not the columns image and lesion_id: {error}") from error
