"""Fuzz all file formats: each corrupted file must be read as valid or refused in one line.

python tests/bad_files.py --number 1000
python tests/bad_files.py --number 1000 --seed 1 --kind "own csv" "image x.jpg" "own folders"

A valid file of each kind that the project reads is corrupted and passed to the real loader. In a
container with checksums only damage to unused bytes may pass as valid; changed pixels of an image
may, too. Random data folders and tables are made by `bad_folders`.
"""

import argparse
import contextlib
import io
import json
import math
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository root

import bad_folders  # noqa: E402

import generate_pseudo  # noqa: E402
import main_moco  # noqa: E402
from common.errors import InputError  # noqa: E402
from datasets import images, isic2018, open_dataset, own, synthetic  # noqa: E402
from datasets.cache import cached  # noqa: E402
from datasets.episode import TASK_FILE, load_task  # noqa: E402
from datasets.groups import with_groups  # noqa: E402
from datasets.images import check_readable, image_set, read_image  # noqa: E402
from datasets.medmnist import PARTS  # noqa: E402
from datasets.pseudo import PSEUDO_FILE, load_pseudo_labels  # noqa: E402
from moco.checkpoint import load_checkpoint, query_encoder  # noqa: E402
from trainer.checkpoint import CHECKPOINT  # noqa: E402

TABLES = "tables"
GENERATED = (*bad_folders.FOLDER_KINDS, TABLES)
SLOW = 5  # seconds
BAD_STRINGS = [*'\0"\n[', "", "nan", "inf", "1e999", "-1", "x" * 200_000, "../../x", "ü", "1,1"]
VALUES = [None, True, -1, 0.5, math.nan, math.inf, 10**30, "x", "\ud800", [], [[]], {}, {"a": 1}]
ROTATED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06" + bytes(6)
IMAGES = {
    "x.jpg": {"exif": ROTATED}, "x.png": {}, "x.bmp": {}, "x.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}  # fmt: skip


def break_bytes(content: bytes, dice: random.Random) -> bytes:
    """Truncate `content`, or change, duplicate or swap bits or chunks of it."""
    for _ in range(dice.choice([1, 1, 1, 3, 30])):
        at, length = dice.randrange(len(content) + 1), dice.randint(1, len(content) // 4 + 1)
        head, chunk, tail = content[:at], content[at : at + length], content[at + length :]
        flipped = bytes(byte ^ 1 << dice.randrange(8) for byte in chunk[:1]) + chunk[1:]
        random_bytes = dice.randbytes(len(chunk))
        parts = [bytes(len(chunk)), flipped, random_bytes, chunk + chunk]
        content = dice.choice([head, tail + chunk + head, *(head + part + tail for part in parts)])
    return content


def break_table(content: bytes, dice: random.Random) -> bytes:
    """Shuffle, drop or duplicate rows of a CSV file, swap columns, or change a value."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(dice.choice([1, 1, 3])):
        row = dice.choice(rows)
        at, kind = dice.randrange(len(row) + 1), dice.randrange(6)
        if kind == 0:
            row[at : at + 1] = [dice.choice(BAD_STRINGS)]
        elif kind == 1:
            del row[at : at + 1]
        elif kind == 2:
            rows.append(list(row))
        elif kind == 3:
            del rows[dice.randrange(len(rows)) + 1 :]
        elif kind == 4:
            for values in rows:
                values[:1], values[at : at + 1] = values[at : at + 1], values[:1]
        else:
            dice.shuffle(rows)
    text = dice.choice(["\n", "\r\n", "\r"]).join(",".join(row) for row in rows)
    return text.encode(dice.choice(["utf-8", "utf-8-sig", "utf-16"]))


def break_values(values: object, dice: random.Random) -> object:
    """Remove, duplicate or replace an item of nested lists and dictionaries."""
    if isinstance(values, list | dict) and values and dice.random() < 0.8:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        key, kind = dice.choice(keys), dice.randrange(6)
        if kind == 0:
            del values[key]
        elif kind == 1 and isinstance(values, list):
            values.append(values[key])
        else:
            values[key] = break_values(values[key], dice)
        return values
    return dice.choice(VALUES)


def break_json(content: bytes, dice: random.Random) -> bytes:
    return json.dumps(break_values(json.loads(content), dice)).encode()


def break_arrays(content: bytes, dice: random.Random) -> bytes:
    """Remove or truncate an array of an .npz file, or change its values, type or shape."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = dice.choice(list(arrays))
    array = arrays.pop(name)
    if array.ndim == 0:
        changes = [lambda: np.array(break_json(str(array).encode(), dice).decode())]
    else:
        rows = [dice.randrange(len(array)) for _ in array]
        dtype = dice.choice(["<U9", complex, ">f4", float, int, bool, "M8[s]", object])
        odd = dice.choice([np.nan, np.inf, 3e38, -1, 0.5, 200])
        changes = [
            lambda: array[: rows[0]], lambda: array[rows], lambda: array[..., None],
            lambda: array.T, lambda: array.astype(dtype), lambda: array * odd,
            lambda: np.where(np.arange(len(array)) == rows[0], odd, array.T).T.astype(array.dtype),
        ]  # fmt: skip
    with contextlib.suppress(ValueError, TypeError, OverflowError), np.errstate(all="ignore"):
        if (changed := dice.choice([*changes, lambda: None])()) is not None:
            arrays[name] = changed
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def break_checkpoint(content: bytes, dice: random.Random) -> bytes:
    """Corrupt the values or tensors of a checkpoint."""
    out, values = io.BytesIO(), torch.load(io.BytesIO(content), weights_only=True)
    if dice.random() < 0.3:
        weights = values["state_dict"]
        name = dice.choice(list(weights))
        weights[name] = dice.choice([weights[name] * math.nan, weights[name][None], "x", None])
    else:
        values = break_values(values, dice)
    torch.save(values, out)
    return out.getvalue()


def kinds(
    folder: Path,
) -> dict[str, tuple[Path, Callable, Callable[[bytes, random.Random], bytes]]]:
    """Create a valid file of each kind in `folder`.

    Returns by kind the path, a loader that also validates the result, and a function that corrupts
    the file in a format-specific way.
    """
    data, a, labels, cache = (folder / name for name in ("data", "a", "labels", "cache"))
    synthetic.make(data, base=12, rare=12, size=24, seed=0)
    base = open_dataset(data).base
    small = "--arch conv4 --image-size 32 --moco-dim 4 --moco-k 8 -b 4 --bn-groups 2 --epochs 0"
    main_moco.main([str(data), "--model_path", str(a), *small.split(), "--cache", str(cache)])
    stage = f"--datadir {data} --resume {a} --savedir {labels} --k_shot 2 --augnum 0 -j 0"
    generate_pseudo.main([*stage.split(), "--cache", str(cache)])

    def image(path: Path) -> None:
        check_readable(image_set("x", ("x",), [("x", path, "x")]))
        try:
            found = read_image(path)
        except InputError as error:
            raise AssertionError("check_readable accepted an unreadable image") from error
        assert len(found.tobytes()) == 3 * found.width * found.height > 0

    def pseudo_labels(path: Path) -> None:
        task, found = load_pseudo_labels(labels)
        found = found.for_images(base)
        assert found.probabilities.shape == (len(base), task.n_way) and found.sha256()
        assert abs(found.probabilities.sum(axis=1) - 1).max() < 1e-2
        assert np.isfinite(found.embeddings).all()

    def arrays(path: Path) -> None:
        found = open_dataset(path)
        check_readable(found.base, found.rare)

    def pixels(path: Path) -> None:
        assert all(read_image(p).size == (32, 32) for p in cached(base, 32, cache).paths)

    def checkpoint(path: Path) -> None:
        query_encoder(load_checkpoint(path))

    truth = data / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv"
    table, medmnist = folder / "own.csv", folder / "dermamnist.npz"
    rows = [f"{path},{label},40" for _, path, label, *_ in isic2018.find(data).rows]
    table.write_text("\n".join(["path,label,age", *rows]))
    groups, found = folder / "groups.csv", open_dataset(data)
    rows = [f"{i},40,{number // 2}" for number, i in enumerate(found.rare.ids)]
    groups.write_text("\n".join(["image,age,group", *rows]))
    picture = synthetic.draw_lesion(synthetic.LOOKS["NV"], np.random.default_rng(0), 24)
    parts = {f"{part}_images": [np.asarray(picture)] * 14 for part in PARTS}
    parts |= {f"{part}_labels": np.arange(14, dtype=np.uint8)[:, None] % 7 for part in PARTS}
    np.savez_compressed(medmnist, **parts)
    for name, options in IMAGES.items():
        picture.save(folder / name, **options)
    return {
        **{f"image {name}": (folder / name, image, break_bytes) for name in IMAGES},
        "isic csv": (truth, lambda _: isic2018.find(data), break_table),
        "lesion csv": (data / isic2018.GROUPINGS, lambda _: isic2018.find(data), break_table),
        "groups csv": (groups, lambda path: with_groups(found, path), break_table),
        "own csv": (table, own.find, break_table),
        "task json": (labels / TASK_FILE, lambda _: load_task(labels), break_json),
        "pseudo labels": (labels / PSEUDO_FILE, pseudo_labels, break_arrays),
        "medmnist": (medmnist, arrays, break_arrays),
        "cache": (next(cache.glob("*.npy")), pixels, break_bytes),
        "checkpoint": (a / CHECKPOINT, checkpoint, break_checkpoint),
    }


def outcome(load: Callable, path: Path) -> str:
    """Return 'valid', 'refused', or a description of the failure."""
    start, stderr, result = time.monotonic(), io.StringIO(), "valid"
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(stderr):
            with contextlib.redirect_stdout(None):
                load(path)
    except InputError as error:
        result = "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except Exception as error:
        result = repr(error)
    output = stderr.getvalue() + "".join(str(warning.message) for warning in caught)
    seconds = time.monotonic() - start
    return f"printed {output}" if output else f"{seconds:.0f} s" if seconds > SLOW else result


def run(number: int, seed: int, only: list[str], folder: Path) -> dict[str, Counter]:
    """Return the counts of refused, valid and failed files per kind; print the first failures."""
    table = {}
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
        files = {} if only and {*only} <= {*GENERATED} else kinds(folder)
    for kind, (path, load, break_it) in files.items():
        if only and kind not in only:
            continue
        original, counts = path.read_bytes(), table.setdefault(kind, Counter())
        assert (result := outcome(load, path)) == "valid", f"{kind}: {result}"
        for index in range(number):
            dice = random.Random(f"{seed}-{kind}-{index}")
            path.unlink()  # the old file may be memory-mapped
            path.write_bytes(dice.choice([break_bytes, break_it])(original, dice))
            images._load.cache_clear()
            result = outcome(load, path)
            if result not in ("valid", "refused"):
                if counts["failed"] < 3:
                    print(f"--kind {kind!r} --seed {seed}, index {index}: {result}")
                result = "failed"
            counts[result] += 1
        path.write_bytes(original)
    known = bad_folders.contents()
    for kind in GENERATED:
        if only and kind not in only:
            continue
        counts = table.setdefault(kind, Counter())
        for index in range(number):
            dice = random.Random(f"{seed}-{kind}-{index}")
            try:
                if kind == TABLES:
                    result = bad_folders.table_outcome(folder, dice, known)
                else:
                    result = bad_folders.folder_outcome(kind, folder, dice, known)
            except Exception as error:
                if counts["failed"] < 3:
                    print(f"--kind {kind!r} --seed {seed}, index {index}: {error!r}")
                result = "failed"
            counts[result] += 1
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=1000, help="files per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="+", default=[], help="only these kinds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = run(args.number, args.seed, args.kind, Path(folder))
    print("| kind | files | refused | read as valid | failed |\n|---|---|---|---|---|")
    for kind, counts in table.items():
        numbers = counts["refused"], counts["valid"], counts["failed"]
        print("|", " | ".join([kind, str(sum(numbers)), *map(str, numbers)]), "|")
    sys.exit(any(counts["failed"] for counts in table.values()))


if __name__ == "__main__":
    main()
