"""Break files in many ways, and see that each is read as sound or refused in one line.

python tests/bad_files.py --number 1000
python tests/bad_files.py --number 1000 --kind "own csv" --seed 1

Of every kind of file that the project reads, a sound one is damaged and given to the real loader.
Where a container has checksums, damage cannot be read as sound unless it hits what nobody reads;
the changed pixels of an image can.
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
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the packages are

import generate_pseudo  # noqa: E402
import main_moco  # noqa: E402
from datasets import images, isic2018, medmnist, open_dataset, own, synthetic  # noqa: E402
from datasets.cache import cached  # noqa: E402
from datasets.episode import TASK_FILE, load_task  # noqa: E402
from datasets.files import InputError  # noqa: E402
from datasets.images import check_readable, image_set, read_image  # noqa: E402
from datasets.pseudo import PSEUDO_FILE, load_pseudo_labels  # noqa: E402
from moco.checkpoint import CHECKPOINT, load_checkpoint  # noqa: E402

SLOW = 5  # seconds
ODD = [
    "",
    "nan",
    "inf",
    "1e999",
    "-1",
    "\0",
    '"',
    "x" * 200_000,
    "../../x",
    "ü",
    "1,1",
    "\n",
    "[",
    "{}",
]
VALUES = [None, True, -1, 0.5, math.nan, math.inf, 10**30, "x", "\ud800", [], [[]], {}, {"a": 1}]
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06" + bytes(6)
IMAGES = {  # the file's name, and how Pillow writes it
    "image jpeg": ("x.jpg", {"exif": TURNED}),
    "image png": ("x.png", {}),
    "image bmp": ("x.bmp", {}),
    "image tiff": ("x.tif", {}),
    "image tiff, lzw": ("x.tif", {"compression": "tiff_lzw"}),
}  # fmt: skip


def break_bytes(content: bytes, dice: random.Random) -> bytes:
    """Cut off, or some bits, bytes or chunks of it changed."""
    data = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 3, 30])):
        start, length = dice.randrange(len(data) + 1), dice.randint(1, max(1, len(data) // 4))
        chunk = data[start : start + length]
        how = dice.randrange(6)
        if how == 0:
            del data[start:]
        elif how == 1 and chunk:
            data[start] ^= 1 << dice.randrange(8)
        elif how == 2:
            data[start : start + length] = bytes(len(chunk))
        elif how == 3:
            data[start:start] = chunk
        elif how == 4:
            other = dice.randrange(len(data) + 1)
            data[start : start + length], data[other : other + length] = (
                data[other : other + length], chunk,
            )  # fmt: skip
        else:
            data[start : start + length] = dice.randbytes(len(chunk))
    return bytes(data)


def break_table(content: bytes, dice: random.Random) -> bytes:
    """Rows or columns of a CSV file dropped, doubled or swapped, or a value replaced."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(dice.choice([1, 1, 3])):
        row = dice.choice(rows) if rows else []
        how = dice.randrange(6)
        if how == 0 and row:
            row[dice.randrange(len(row))] = dice.choice(ODD)
        elif how == 1 and row:
            del row[dice.randrange(len(row))]
        elif how == 2 and rows:
            rows.remove(row)
        elif how == 3:
            rows.insert(dice.randrange(len(rows) + 1), list(row))
        elif how == 4:
            column, other = dice.randrange(8), dice.randrange(8)
            for values in rows:
                if max(column, other) < len(values):
                    values[column] = values[other]
        else:
            dice.shuffle(rows)
    text = dice.choice(["\n", "\r\n", "\r"]).join(",".join(row) for row in rows)
    return text.encode(dice.choice(["utf-8", "utf-8-sig", "utf-16"]))


def break_values(values: object, dice: random.Random) -> object:
    """Something in nested lists and dictionaries removed, doubled or replaced."""
    if isinstance(values, list | dict) and values and dice.random() < 0.8:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        key, how = dice.choice(keys), dice.randrange(6)
        if how == 0:
            del values[key]
        elif how == 1 and isinstance(values, list):
            values.append(values[key])
        else:
            values[key] = break_values(values[key], dice)
        return values
    return dice.choice(VALUES)


def break_json(content: bytes, dice: random.Random) -> bytes:
    return json.dumps(break_values(json.loads(content), dice)).encode()


def break_arrays(content: bytes, dice: random.Random) -> bytes:
    """An array of an .npz file removed, cut, or with other values, type or shape."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = dice.choice(list(arrays))
    array, how = arrays.pop(name), dice.randrange(7)
    if array.ndim == 0 and how:
        array = np.array(break_json(str(array).encode(), dice).decode())
    elif how == 1:
        array = array[: dice.randrange(len(array))]
    elif how == 2:
        kinds = ["<U9", np.complex64, ">f4", np.float64, np.int64, bool, "M8[s]"]
        with contextlib.suppress(ValueError):
            array = array.astype(dice.choice(kinds))
    elif how == 3:
        array = array[..., None] if dice.random() < 0.5 else array.T
    elif how == 4:
        array = np.array([{"an": "object"}] * len(array))
    elif how == 5:
        array = array[np.array([dice.randrange(len(array)) for _ in array])]
    elif how == 6 and array.dtype.kind in "fiu":
        with np.errstate(all="ignore"):
            values = [np.nan, np.inf, -np.inf, 3e38, -1, 0.5, 200]
            array.flat[dice.randrange(array.size)] = np.float64(dice.choice(values)).astype(
                array.dtype
            )
    out = io.BytesIO()
    np.savez_compressed(out, **(arrays if how == 0 else arrays | {name: array}))
    return out.getvalue()


def kinds(folder: Path) -> dict[str, tuple[Path, list[Callable], Callable]]:
    """What is broken: by kind the sound file, in `folder`, ways to break it, and its loader, which
    also asks whether what it has loaded is valid."""
    data, a, labels = folder / "data", folder / "a", folder / "labels"
    synthetic.make(data, base=12, rare=12, size=24, seed=0)
    small = "--arch conv4 --image-size 32 --moco-dim 4 --moco-k 8 -b 4 --bn-groups 2 --epochs 0"
    cache = ["--cache", str(folder / "cache"), "-j", "0"]
    with contextlib.redirect_stdout(None):
        main_moco.main([str(data), "--model_path", str(a), *small.split(), *cache])
        stage = ["--datadir", str(data), "--resume", str(a), "--savedir", str(labels)]
        generate_pseudo.main([*stage, "--k_shot", "2", "--augnum", "0", *cache])
    base = open_dataset(data).base

    def is_image(path: Path) -> None:
        try:
            check_readable(image_set("x", ("x",), [("x", path, "x")]))
        finally:  # both say the same
            with contextlib.suppress(InputError):
                image = read_image(path)
                assert image.mode == "RGB" and min(image.size) > 0
                assert len(image.tobytes()) == 3 * image.width * image.height

    def are_labels(path: Path) -> None:
        task, labels = load_pseudo_labels(path.parent)
        labels = labels.for_images(base)
        assert labels.ids == base.ids and labels.probabilities.shape == (len(base), task.n_way)
        assert labels.hard().max() < task.n_way and labels.sha256()
        assert abs(labels.probabilities.sum(axis=1) - 1).max() < 1e-2
        assert np.isfinite(labels.embeddings).all()

    def is_medmnist(path: Path) -> None:
        found = open_dataset(path)
        check_readable(found.base, found.rare)

    def is_cached(path: Path) -> None:
        pixels = [read_image(place) for place in cached(base, 32, path.parent).paths]
        assert all(image.size == (32, 32) for image in pixels)

    picture = synthetic.draw_lesion(synthetic.LOOKS["NV"], np.random.default_rng(0), 24)
    found = {}
    for number, (kind, (name, how)) in enumerate(IMAGES.items()):
        (folder / str(number)).mkdir()
        picture.save(folder / str(number) / name, **how)
        found[kind] = folder / str(number) / name, [break_bytes], is_image
    table = folder / "own.csv"
    lines = [f"{path},{label},40" for _, path, label in isic2018.rows(data)]
    table.write_text("\n".join(["path,label,age", *lines]))
    arrays = {}
    for part in medmnist.PARTS:
        arrays[f"{part}_images"] = np.stack([np.asarray(picture)] * 14)
        arrays[f"{part}_labels"] = np.arange(14, dtype=np.uint8)[:, None] % 7
    np.savez_compressed(folder / "dermamnist.npz", **arrays)
    (pixels,) = (folder / "cache").glob("*.npy")
    truth = data / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv"
    return found | {
        "isic csv": (truth, [break_bytes, break_table], lambda path: isic2018.rows(data)),
        "lesion csv": (
            data / isic2018.GROUPINGS,
            [break_bytes, break_table],
            lambda path: isic2018.lesions(data),
        ),
        "own csv": (table, [break_bytes, break_table], own.rows),
        "task json": (
            labels / TASK_FILE,
            [break_bytes, break_json],
            lambda path: load_task(labels),
        ),
        "pseudo labels": (labels / PSEUDO_FILE, [break_bytes, break_arrays], are_labels),
        "medmnist": (folder / "dermamnist.npz", [break_bytes, break_arrays], is_medmnist),
        "cache": (pixels, [break_bytes], is_cached),
        "checkpoint": (a / CHECKPOINT, [break_bytes], load_checkpoint),
    }  # fmt: skip


def what_comes_of(load: Callable, path: Path) -> str:
    """'sound', 'refused', or what failed, in some lines."""
    begun, said = time.monotonic(), io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(said):
            with contextlib.redirect_stdout(None):
                load(path)
        result = "sound"
    except InputError as error:
        result = "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except Exception:
        return traceback.format_exc(limit=-3)
    if warned or said.getvalue():
        return f"it says {said.getvalue()}{''.join(str(w.message) for w in warned)}"
    seconds = time.monotonic() - begun
    return result if seconds < SLOW else f"it took {seconds:.0f} s"


def run(number: int, seed: int, only: list[str], folder: Path) -> dict[str, Counter]:
    """How many of each kind were refused, read as sound or failed; it prints the first of these."""
    table = {}
    for kind, (path, ways, load) in kinds(folder).items():
        if only and kind not in only:
            continue
        sound, counts = path.read_bytes(), table.setdefault(kind, Counter())
        assert (result := what_comes_of(load, path)) == "sound", f"{kind}: {result}"
        for index in range(number):
            dice = random.Random(f"{seed}-{kind}-{index}")
            path.unlink()  # rather than change it under those who have mapped it to memory
            path.write_bytes(dice.choice(ways)(sound, dice))
            images._load.cache_clear()
            result = what_comes_of(load, path)
            if result not in ("sound", "refused"):
                if not counts["failed"]:
                    print(f"{kind}, seed {seed}, index {index}: {result}")
                result = "failed"
            counts[result] += 1
        path.write_bytes(sound)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=1000, help="of files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="+", default=[], help="these alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = run(args.number, args.seed, args.kind, Path(folder))
    print("| kind | files | refused | read as sound | failed |\n|---|---|---|---|---|")
    for kind, counts in table.items():
        numbers = counts["refused"], counts["sound"], counts["failed"]
        print("|", " | ".join([kind, str(sum(numbers)), *map(str, numbers)]), "|")
    sys.exit(any(counts["failed"] for counts in table.values()))


if __name__ == "__main__":
    main()
