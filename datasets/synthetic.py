"""Generate synthetic skin lesions in the layout of ISIC 2018, for trying the pipeline.

    python -m datasets.synthetic OUT

Seven classes differ in colour, border and texture. Each rare class shares features with base
classes, so that an encoder trained on base images transfers.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from common.failures import one_line
from common.files import csv_text, refuse_to_overwrite, write_utf8

from .isic2018 import COLUMNS, GROUND_TRUTH, GROUPINGS, IMAGES, RARE_CLASSES


@dataclass(frozen=True)
class Look:
    """Appearance of a class, and its share of the base or rare images."""

    share: float
    colour: tuple[int, int, int]
    irregularity: float  # of the border, relative to the radius
    lobes: int
    texture: str
    strength: float


LOOKS = {
    "NV": Look(0.46, (136, 88, 60), 0.05, 3, "plain", 0.0),
    "MEL": Look(0.20, (78, 50, 44), 0.20, 5, "blotches", 0.6),
    "BKL": Look(0.20, (164, 122, 82), 0.09, 8, "dots", 0.5),
    "BCC": Look(0.14, (206, 132, 124), 0.10, 4, "vessels", 0.5),
    "DF": Look(0.28, (140, 92, 66), 0.06, 3, "pale centre", 0.9),  # a nevus with a scar
    "AKIEC": Look(0.40, (202, 126, 112), 0.18, 5, "dots", 0.5),  # BCC's colour, BKL's scale
    "VASC": Look(0.32, (168, 66, 78), 0.10, 8, "blotches", 0.5),  # BKL's lobes, MEL's blotches
}


def _noise(generator: np.random.Generator, size: int, radius: float) -> np.ndarray:
    """Return smooth noise, size×size, with mean 0 and standard deviation 1."""
    raw = Image.fromarray(generator.integers(0, 256, (size, size), dtype=np.uint8))
    field = np.asarray(raw.filter(ImageFilter.GaussianBlur(radius)), dtype=float)
    return (field - field.mean()) / (field.std() + 1e-6)


def _texture(
    look: Look, generator: np.random.Generator, size: int, depth: np.ndarray
) -> np.ndarray:
    """Return the change of brightness, −1 to 1; `depth` is 1 at the lesion's centre."""
    if look.texture == "blotches":
        return np.where(_noise(generator, size, size / 14) > 0.5, -1.0, 0.15)
    if look.texture == "dots":
        return np.where(_noise(generator, size, size / 60) > 1.0, 1.0, -0.1)
    if look.texture == "vessels":
        return np.where(np.abs(_noise(generator, size, size / 24)) < 0.12, -1.0, 0.1)
    if look.texture == "pale centre":
        return np.clip(2.5 * depth - 1, 0, 1)
    return np.zeros((size, size))


def draw_lesion(look: Look, generator: np.random.Generator, size: int) -> Image.Image:
    """Draw a size×size image: skin, one lesion, sometimes hairs, uneven lighting."""
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    x, y = columns + generator.uniform(-0.08, 0.08), rows + generator.uniform(-0.08, 0.08)
    aspect = generator.uniform(0.8, 1.25)
    angle, distance = np.arctan2(y, x * aspect), np.hypot(x * aspect, y / aspect)
    border = np.ones_like(angle)
    for wave in (look.lobes, look.lobes + 2, 2 * look.lobes + 1):
        amplitude = look.irregularity * generator.uniform(0.3, 0.8)
        border += amplitude * np.sin(wave * angle + generator.uniform(0, 2 * np.pi))
    radius = generator.uniform(0.20, 0.32) * border
    depth = np.clip(1 - distance / radius, 0, 1)
    inside = np.clip((radius - distance) * size / 3, 0, 1)[..., None]

    skin = (
        np.array([226, 184, 164])
        + generator.normal(0, 8, 3)
        + 5 * _noise(generator, size, 3)[..., None]
    )
    shade = 1 + 0.5 * look.strength * _texture(look, generator, size, depth)
    lesion = (np.array(look.colour) + generator.normal(0, 14, 3)) * shade[..., None]
    image = skin * (1 - inside) + lesion * inside
    for _ in range(generator.integers(0, 4)):  # hairs
        slope = generator.uniform(0, np.pi)
        line = np.cos(slope) * x + np.sin(slope) * y + 0.4 * x * y - generator.uniform(-0.4, 0.4)
        image[np.abs(line) < 0.7 / size] *= 0.45
    light = generator.uniform(0.8, 1.15) + 0.15 * generator.uniform(-1, 1) * x
    image = image * light[..., None] + generator.normal(0, 3, image.shape)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def make(root: Path, base: int, rare: int, size: int, seed: int) -> None:
    """Write about `base` base and `rare` rare images, one per lesion, and both CSV files."""
    generator = np.random.default_rng(seed)
    labels = [
        name
        for name, look in LOOKS.items()
        for _ in range(round(look.share * (rare if name in RARE_CLASSES else base)))
    ]
    generator.shuffle(labels)
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    truth: list[tuple] = [COLUMNS]
    groupings = [("image", "lesion_id", "diagnosis_confirm_type")]
    for number, label in enumerate(labels):
        name = f"ISIC_{number:07d}"
        image = draw_lesion(LOOKS[label], generator, size)
        image.save(root / IMAGES / f"{name}.jpg", quality=92)
        truth.append((name, *(float(label == column) for column in COLUMNS[1:])))
        groupings.append((name, f"SYN_{number:07d}", "synthetic"))
    write_utf8(root / GROUND_TRUTH / f"{GROUND_TRUTH}.csv", csv_text(truth))
    write_utf8(root / GROUPINGS, csv_text(groupings))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--base", type=int, default=480, help="number of base images (default 480)")
    parser.add_argument("--rare", type=int, default=150, help="number of rare images (default 150)")
    parser.add_argument("--size", type=int, default=96, help="image size in pixels (default 96)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing files")
    args = parser.parse_args()
    for name, minimum in (("base", 8), ("rare", 8), ("size", 8), ("seed", 0)):
        if (value := getattr(args, name)) < minimum:
            parser.error(f"--{name} must be at least {minimum}, got {value}")
    with one_line("synthetic"):
        refuse_to_overwrite([args.out / GROUND_TRUTH, args.out / IMAGES], args.overwrite)
        make(args.out, args.base, args.rare, args.size, args.seed)


if __name__ == "__main__":
    main()
