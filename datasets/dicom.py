"""Optional image formats: DICOM, read by pydicom, and HEIC, by pillow-heif, where installed."""

import logging
import warnings
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from common.errors import reason
from common.packages import required

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
READ = "convert it to PNG, or read it with"
DEEP = "more than 8 bits per channel"
warnings.filterwarnings("ignore", module=r"pydicom\.")  # of odd tags
logging.getLogger("pydicom").addHandler(logging.NullHandler())


def open_heic(file: BinaryIO) -> Image.Image:
    """Open a HEIC file, upright as its container says; the standard ignores EXIF's orientation.

    Raises InputError without pillow-heif, and ValueError if it has more than 8 bits.
    """
    required("pillow_heif", "pillow_heif", f"HEIC; {READ}").register_heif_opener()
    image = Image.open(file, formats=("HEIF",))
    if image.info.get("bit_depth", 8) > 8:  # would be reduced silently
        raise ValueError(f"{DEEP}; convert to 8 bits")
    return image


def read_dicom(file: BinaryIO) -> Image.Image:
    """Read a DICOM image as a viewer shows it: rescaled, windowed, and MONOCHROME1 inverted.

    The VOI LUT of the file is applied, else its first window. Raises InputError without pydicom,
    and ValueError for a file without an image or with several frames and, as for other images of
    more than 8 bits, if the file has neither.
    """
    pydicom = required("pydicom", "pydicom", f"DICOM; {READ}")
    dataset = pydicom.dcmread(file)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError(f"DICOM without an image (modality {dataset.get('Modality', '?')})")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise ValueError(f"DICOM with {frames} frames; export the one to be used")
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in (*GREY, *COLOUR):
        raise ValueError(f"DICOM with photometric interpretation {photometric}; convert it to PNG")
    processing = required("pydicom.pixels", "pydicom", f"DICOM; {READ}")
    try:
        pixels = processing.pixel_array(dataset)  # YBR becomes RGB
    except RuntimeError as error:  # of a compression
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(
            f"DICOM compressed as {syntax}: pip install pylibjpeg pylibjpeg-libjpeg "
            f"pylibjpeg-openjpeg, or convert it to PNG ({reason(error)})"
        ) from error
    if photometric == "PALETTE COLOR":
        pixels = processing.apply_color_lut(pixels, dataset)
        if pixels.dtype != np.uint8:  # entries of 16 bits, whose upper half is the colour
            pixels = (pixels >> (0 if _entries_of_8_bits(dataset) else 8)).astype(np.uint8)
    elif photometric in GREY:
        shades = _shades(processing, pixels, dataset)
        shades = 1 - shades if photometric == "MONOCHROME1" else shades
        pixels = np.rint(255 * shades).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{DEEP}; convert to 8 bits")
    return Image.fromarray(pixels)


def _entries_of_8_bits(dataset: Any) -> bool:
    """Return whether a palette's entries of 16 bits are below 256, as some devices write them."""
    tables = [dataset.get(f"{c}PaletteColorLookupTableData") for c in ("Red", "Green", "Blue")]
    return all(table and np.frombuffer(table, "<u2").max() < 256 for table in tables)


def _shades(processing: ModuleType, pixels: np.ndarray, dataset: Any) -> np.ndarray:
    """Return greyscale `pixels` as shades from 0 to 1, by the file's rescaling and window."""
    values = processing.apply_modality_lut(pixels, dataset)
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        shades = processing.apply_voi(values, dataset) / (2**bits - 1)
    elif None not in (windows := [dataset.get(f"Window{k}") for k in ("Center", "Width")]):
        center, width = (float(np.ravel(values)[0]) for values in windows)  # the first window
        shades = window(values, center, width, dataset.get("VOILUTFunction"))
    elif pixels.dtype.kind in "iu" and dataset.BitsStored <= 8:
        low = -(2 ** (dataset.BitsStored - 1)) if pixels.dtype.kind == "i" else 0
        shades = (pixels.astype(np.float64) - low) / (2**dataset.BitsStored - 1)
    else:
        raise ValueError(f"DICOM with {DEEP} and no window; convert to 8 bits")
    return np.clip(shades, 0, 1)


def window(
    values: np.ndarray, center: float, width: float, function: str | None = None
) -> np.ndarray:
    """Return `values` as shades, 0 to 1 within the window (DICOM PS3.3, C.11.2.1)."""
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function not in ("LINEAR_EXACT", "SIGMOID"):
        if width <= 1:
            return (values > center - 0.5).astype(np.float64)
        center, width = center - 0.5, width - 1
    if width <= 0:
        raise ValueError(f"invalid window of width {width}")
    return (values - center) / width + 0.5
