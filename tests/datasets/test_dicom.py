"""DICOM, against pixels computed by hand, and HEIC."""

import sys

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from datasets import open_dataset
from datasets.dicom import window
from datasets.images import read_image

STEPS = np.array([[0, 100, 200], [300, 400, 4095]], np.uint16)


def write(path, pixels, photometric="MONOCHROME2", bits=None, **tags):
    """Write `pixels` as an uncompressed DICOM file."""
    pydicom = pytest.importorskip("pydicom")
    dataset, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if pixels.ndim == 2 else pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def grey(path):
    found = np.asarray(read_image(path))
    assert (found == found[..., :1]).all()
    return found[..., 0].tolist()


def test_a_window(tmp_path):
    """Center 200.5 and width 201: 100 is black, 300 is white (PS3.3, C.11.2.1.2.1)."""
    path = write(tmp_path / "x.dcm", STEPS, WindowCenter=200.5, WindowWidth=201)
    assert grey(path) == [[0, 0, 128], [255, 255, 255]]
    path = write(tmp_path / "x.dcm", STEPS, "MONOCHROME1", WindowCenter=200.5, WindowWidth=201)
    assert grey(path) == [[255, 255, 128], [0, 0, 0]]


def test_rescaling_comes_before_the_first_window(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    windows = {"WindowCenter": [-600, 40], "WindowWidth": [800, 400]}
    exact = {"VOILUTFunction": "LINEAR_EXACT"}
    path = write(tmp_path / "x.dcm", STEPS, **tags, **windows, **exact)
    values = 2.0 * STEPS - 1000
    expected = np.rint(255 * np.clip((values + 600) / 800 + 0.5, 0, 1))
    assert grey(path) == expected.tolist()


def test_window_functions():
    """Python's round would round .5 to even."""
    values = np.array([0.0, 50, 100])
    assert window(values, 50, 100, "LINEAR_EXACT").tolist() == [0, 0.5, 1]
    assert window(values, 50.5, 101).tolist() == [0, 0.5, 1]
    assert window(values, 50, 1).tolist() == [0, 1, 1]
    sigmoid = 1 / (1 + np.exp(-4 * (values - 50) / 100))
    assert window(values, 50, 100, "SIGMOID") == pytest.approx(sigmoid)
    for function in ("LINEAR_EXACT", "SIGMOID"):
        with pytest.raises(ValueError, match="width 0"):
            window(values, 50, 0, function)


def test_a_lookup_table_of_values(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    table = pydicom.Dataset()
    table.LUTDescriptor = [3, 100, 8]  # entries, first value, bits
    table.LUTData = [10, 20, 255]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[0, 100, 101, 102, 200, 0]], np.uint16)
    path = write(tmp_path / "x.dcm", pixels, VOILUTSequence=[table], WindowCenter=1, WindowWidth=9)
    assert grey(path) == [[10, 10, 20, 255, 255, 10]]


def test_8_bits_without_a_window_are_as_stored(tmp_path):
    pixels = np.array([[0, 1, 254, 255]], np.uint8)
    assert grey(write(tmp_path / "x.dcm", pixels)) == pixels.tolist()
    assert grey(write(tmp_path / "x.dcm", pixels, "MONOCHROME1")) == (255 - pixels).tolist()


def test_16_bits_without_a_window_are_refused_like_a_png(tmp_path):
    path = write(tmp_path / "x.dcm", STEPS, bits=12)
    with pytest.raises(InputError, match="x.dcm: DICOM with more than 8 bits .* no window"):
        read_image(path)


@pytest.mark.parametrize("kind, colour", [("RGB", (254, 0, 0)), ("YBR_FULL", (76, 85, 255))])
def test_colours(tmp_path, kind, colour):
    path = write(tmp_path / "x.dcm", np.full((4, 6, 3), colour, np.uint8), kind)
    assert read_image(path).size == (6, 4)
    assert np.abs(np.asarray(read_image(path)).astype(int) - (254, 0, 0)).max() <= 1


def test_a_palette(tmp_path):
    palette = {}
    for name, entries in (("Red", [0, 65535]), ("Green", [0, 256]), ("Blue", [0, 0])):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    path = write(tmp_path / "x", np.array([[0, 1]], np.uint8), "PALETTE COLOR", **palette)
    assert np.asarray(read_image(path)).tolist() == [[[0, 0, 0], [255, 1, 0]]]
    for name, entries in (("Red", [0, 255]), ("Green", [0, 9]), ("Blue", [0, 0])):
        palette[f"{name}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    path = write(tmp_path / "y", np.array([[0, 1]], np.uint8), "PALETTE COLOR", **palette)
    assert np.asarray(read_image(path)).tolist() == [[[0, 0, 0], [255, 9, 0]]]


def test_frames_and_files_without_an_image(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    path = write(tmp_path / "x.dcm", pixels, NumberOfFrames=2, Rows=2)
    with pytest.raises(InputError, match="DICOM with 2 frames"):
        read_image(path)
    pydicom = pytest.importorskip("pydicom")
    report = pydicom.dcmread(write(tmp_path / "x.dcm", pixels, Modality="SR"))
    del report.PixelData
    report.save_as(tmp_path / "x.dcm")
    with pytest.raises(InputError, match="x.dcm: DICOM without an image .modality SR"):
        read_image(tmp_path / "x.dcm")
    with pytest.raises(InputError, match="photometric interpretation YBR_PARTIAL_420; convert"):
        read_image(write(tmp_path / "x.dcm", np.zeros((4, 4, 3), np.uint8), "YBR_PARTIAL_420"))
    (tmp_path / "x.dcm").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="x.dcm: "):
        read_image(tmp_path / "x.dcm")


def test_dicom_by_content_in_a_class_folder(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for file in ("IM000001", "x.dcm", "y.jpg"):  # a DICOM file is one under any name
            write(tmp_path / name / file, np.full((4, 4), 7, np.uint8))
    (tmp_path / "a" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    data = open_dataset(tmp_path, ["a"], ["b", "c"])
    assert data.base.counts() == {"a": 3} and len(data.passed_over) == 1
    assert {grey(path)[0][0] for path in data.base.paths} == {7}


def test_heic(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    for name in ("x.heic", "x.jpg", "x"):
        Image.new("RGB", (32, 16), "red").save(tmp_path / name, format="HEIF", quality=100)
        found = np.asarray(read_image(tmp_path / name)).astype(int)
        assert found.shape == (16, 32, 3) and np.abs(found - (255, 0, 0)).max() <= 6
    red, blue = (Image.new("RGB", (32, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "x.heic", format="HEIF", save_all=True, append_images=[blue])
    with pytest.raises(InputError, match="HEIF with 2 pages or frames; export the one"):
        read_image(tmp_path / "x.heic")


HEADS = {"pydicom": bytes(128) + b"DICM", "pillow_heif": b"\0\0\0\x1cftypheic"}


@pytest.mark.parametrize("module", HEADS)
@pytest.mark.parametrize("missing", [True, False])
def test_without_the_package(tmp_path, module, missing, monkeypatch):
    """Images are named with what would help."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)

    class Finder:
        def find_spec(self, name, *rest):
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError("none", name=name) if missing else TypeError("broken")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    (tmp_path / "x.jpg").write_bytes(HEADS[module] + bytes(100))
    says = f"pip install {module}" if missing else "installed but broken: TypeError: broken"
    with pytest.raises(InputError, match=f"x.jpg: (DICOM|HEIC); convert it to PNG.* {says}"):
        read_image(tmp_path / "x.jpg")
