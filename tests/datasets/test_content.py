"""Digests of contents: right, kept, and computed again after any edit."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import content
from datasets.content import content_key, copies, digests
from datasets.images import ArrayImage, image_set


@pytest.fixture
def files(tmp_path):
    """a = b = d, of the size of c; e has another size."""
    (tmp_path / "data").mkdir()
    paths = [tmp_path / "data" / f"{name}.bmp" for name in "abcde"]
    for path, colour in zip(paths, ["red", "red", "blue", "red", "blue"]):
        Image.new("RGB", (9 if path.stem == "e" else 4, 4), colour).save(path)
    return paths


@pytest.fixture
def hashed(monkeypatch):
    """The names of the sources that are read."""
    names, read = [], content._hash
    monkeypatch.setattr(
        content, "_hash", lambda source: (names.append(Path(source).name), read(source))[1]
    )
    return names


@pytest.mark.parametrize("kept", [True, False])
def test_copies_are_found_and_other_sizes_not_read(files, tmp_path, hashed, kept):
    cache = tmp_path / "cache" if kept else None
    assert copies(files, cache) == [[0, 1, 3]] and sorted(hashed) == [
        f"{name}.bmp" for name in "abcd"
    ]
    hashed.clear()
    assert copies(files, cache) == [[0, 1, 3]] and len(hashed) == (0 if kept else 4)


def test_an_edit_that_keeps_size_and_time_is_noticed(files, tmp_path, hashed):
    first = digests(files, tmp_path / "cache")
    before = os.stat(files[0])
    data = files[0].read_bytes()
    files[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(files[0]).st_mtime_ns == before.st_mtime_ns
    hashed.clear()
    second = digests(files, tmp_path / "cache")
    assert hashed == ["a.bmp"] and second[0] != first[0] and second[1:] == first[1:]


@pytest.mark.parametrize(
    "damaged", [b"", b"[]", b"{", b'{"x": 1}', b"\xff", b'{"x": [[1], "ab"]}', b"null"]
)
def test_a_damaged_file_of_digests_is_made_anew(files, tmp_path, damaged):
    first = digests(files, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / content.FOLDER).iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damaged)
    assert digests(files, tmp_path / "cache") == first
    assert set(whole.split(b'"')) <= set(kept.read_bytes().split(b'"'))
    assert digests(files, tmp_path / "cache") == first


def test_without_a_folder_to_write_to(files, tmp_path):
    (tmp_path / "file").write_text("")
    assert copies(files, tmp_path / "file" / "cache") == [[0, 1, 3]]


def test_rows_of_arrays(tmp_path, hashed):
    """Over the arrays of a file; rows of another shape or type are other images."""
    row = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    other = row[:1].reshape(1, 2, 8)
    np.savez(tmp_path / "x.npz", train=row[[0, 1, 0]], val=row[[2, 1]], test=other)
    where = [("train", 0), ("train", 1), ("train", 2), ("val", 0), ("val", 1), ("test", 0)]
    paths = [ArrayImage(tmp_path / "x.npz", array, n) for array, n in where]
    for _ in range(2):
        assert copies(paths, tmp_path / "cache") == [[0, 2], [1, 4]]
    assert len(hashed) == 3
    # A part of the rows, and a row that the array lacks.
    assert digests([paths[4], paths[1], ArrayImage(tmp_path / "x.npz", "val", 9)], None)[2] == ""
    assert copies([paths[4], paths[1]], tmp_path / "cache") == [[0, 1]] and len(hashed) == 6 - 1


def test_what_is_no_image_has_no_copies(tmp_path):
    """Empty, missing, damaged and unreadable files are reported by the stages that decode them."""
    page, empty, missing = [b"<html>404</html>"] * 2, [b""] * 2, ["x.png", "y.png"]
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for path, data in zip(paths, [*page, *empty]):
        path.write_bytes(data)
    paths += [tmp_path / name for name in missing]
    np.savez(tmp_path / "x.npz", train=np.zeros((2, 4, 4), np.uint8))
    damaged = bytearray((tmp_path / "x.npz").read_bytes())
    damaged[100] ^= 255
    (tmp_path / "x.npz").write_bytes(damaged)
    paths += [ArrayImage(tmp_path / "x.npz", "train", n) for n in range(2)]
    for number in range(2):
        os.mkfifo(tmp_path / f"pipe{number}.jpg")
        (tmp_path / f"folder{number}.jpg").mkdir()
        paths += [tmp_path / f"pipe{number}.jpg", tmp_path / f"folder{number}.jpg"]
    assert copies(paths, tmp_path / "cache") == []
    assert digests(paths[4:], tmp_path / "cache") == [""] * 8


def test_the_same_file_by_links_is_a_copy(files, tmp_path):
    (tmp_path / "link.bmp").symlink_to(files[2])
    os.link(files[4], tmp_path / "hard.bmp")
    paths = [files[2], files[4], tmp_path / "link.bmp", tmp_path / "hard.bmp"]
    assert copies(paths, None) == [[0, 2], [1, 3]]


def test_processes_that_start_together_read_once(files, tmp_path, hashed):
    barrier, results = threading.Barrier(6), []

    def start():
        barrier.wait()
        results.append(copies(files, tmp_path / "cache"))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[[0, 1, 3]]] * 6 and len(hashed) == 4


def test_the_key_of_a_set_depends_on_content_alone(files, tmp_path):
    def key(folder):
        rows = [(path.name, folder / path.name, "x") for path in files]
        return content_key([image_set("s", ("x",), rows)], tmp_path / "cache")

    first = key(files[0].parent)
    assert key(files[0].parent.rename(tmp_path / "renamed")) == first
    (tmp_path / "renamed" / "e.bmp").write_bytes((tmp_path / "renamed" / "c.bmp").read_bytes())
    assert key(tmp_path / "renamed") != first
