"""Cache of decoded images: same pixels, right file, no partial file."""

import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from datasets import cache as module
from datasets.cache import cached, files_key
from datasets.content import digests
from datasets.images import ArrayImage, TransformedImages, image_set, read_image
from datasets.open import decoded
from moco.augment import plain_view, random_view
from moco.loader import RandomViews


@pytest.fixture
def images(tmp_path):
    """Three images of different sizes, one of them grey."""
    generator = np.random.default_rng(0)
    for number, shape in enumerate([(50, 40, 3), (33, 61, 3), (20, 20)]):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return image_set("synthetic", ("x",), [(f"{n}", tmp_path / f"{n}.png", "x") for n in range(3)])


def test_views_equal_those_of_the_files(images, tmp_path):
    from_cache = cached(images, 32, tmp_path / "cache")
    assert (from_cache.ids, from_cache.labels) == (images.ids, images.labels)
    assert from_cache.fingerprint() == images.fingerprint()
    for view in (random_view(32), random_view(32, aug_plus=True)):
        one, other = (RandomViews(s, view, 2, seed=1) for s in (images, from_cache))
        for row in range(3):
            for a, b in zip(one[4, row][0], other[4, row][0]):
                assert torch.equal(a, b)
    one, other = (TransformedImages(s, plain_view(32)) for s in (images, from_cache))
    assert all(torch.equal(one[row], other[row]) for row in range(3))


def test_cache_is_written_once(images, tmp_path, monkeypatch):
    first = cached(images, 32, tmp_path / "cache")
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("written again"))
    assert cached(images, 32, tmp_path / "cache") == first


def test_changed_images_get_another_cache(images, tmp_path):
    folder = tmp_path / "cache"
    first = cached(images, 32, folder)
    assert cached(images, 33, folder).paths != first.paths
    assert cached(images.take(["1", "0"]), 32, folder).paths[0] != first.paths[0]
    Image.new("RGB", (50, 40), "red").save(images.paths[0])
    os.utime(images.paths[0], ns=(0, 0))
    again = cached(images, 32, folder)
    assert read_image(again.paths[0]).getpixel((0, 0)) == (255, 0, 0)
    assert read_image(first.paths[0]).getpixel((0, 0)) != (255, 0, 0)


def test_an_edit_that_keeps_length_and_time_gets_another_cache(images, tmp_path):
    """As by a tool that restores the time; an older cache is not used for it either."""
    path = images.paths[0]
    Image.new("RGB", (50, 40), "blue").save(path, "bmp")
    first, older = cached(images, 32, tmp_path / "cache"), files_key(images, change_time=False)
    before = os.stat(path)
    Image.new("RGB", (50, 40), "red").save(path, "bmp")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = cached(images, 32, tmp_path / "cache")
    assert again.paths[0].file != first.paths[0].file
    assert read_image(again.paths[0]).getpixel((0, 0)) == (255, 0, 0)
    assert files_key(images, change_time=False) == older


def test_all_unreadable_images_are_listed_and_nothing_is_left(images, tmp_path):
    for row in (0, 2):
        images.paths[row].write_bytes(images.paths[row].read_bytes()[:60])
    with pytest.raises(InputError, match=r"2 of 3 images .*0\.png: .*, .*2\.png: "):
        cached(images, 32, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_starting_together(images, tmp_path, monkeypatch):
    """Only one of eight concurrent threads writes."""
    writes, write = [], module._write
    monkeypatch.setattr(module, "_write", lambda *args: (writes.append(args), write(*args)))
    barrier, results = threading.Barrier(8), []

    def start():
        barrier.wait()
        results.append(cached(images, 32, tmp_path / "cache"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writes) == 1 and len(results) == 8 and all(r == results[0] for r in results)


@pytest.mark.parametrize("locks", [True, False])
def test_temporary_files_of_other_processes_are_kept(images, tmp_path, monkeypatch, locks):
    """Unless the lock shows that no other process is writing."""
    (path, *_) = cached(images, 32, tmp_path / "cache").paths
    path.file.unlink()
    other = path.file.with_name(f".{path.file.name}.1.tmp")
    other.touch()

    def flock(handle, operation):
        if not locks:
            raise OSError(9, "Bad file descriptor")  # as on NFS

    monkeypatch.setattr("fcntl.flock", flock)
    cached(images, 32, tmp_path / "cache")
    assert path.file.exists() and other.exists() != locks


def test_rows_of_an_array_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", train=pixels)
    rows = [(f"{n}", ArrayImage(tmp_path / "some.npz", "train", n), "x") for n in (2, 0)]
    found = cached(image_set("some", ("x",), rows), 32, tmp_path / "cache")
    assert all((np.asarray(read_image(p)) == pixels[n]).all() for n, p in zip((0, 2), found.paths))


@pytest.mark.parametrize("left", [0, 60, 1000])
def test_a_truncated_file_is_rewritten(images, tmp_path, left):
    (path, *_) = cached(images, 32, tmp_path / "cache").paths
    whole = path.file.read_bytes()
    path.file.write_bytes(whole[:left])
    assert cached(images, 32, tmp_path / "cache").paths[0] == path
    assert path.file.read_bytes() == whole


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((3, 32, 32, 3), np.int8),
        np.zeros((3, 32, 32, 4), np.uint8),
        np.zeros((3, 32, 32, 3), np.uint8, order="F"),
        np.zeros((4, 32, 32, 3), np.uint8),
    ],
)
def test_a_file_of_another_shape_or_type_is_rewritten(images, tmp_path, other):
    (path, *_) = cached(images, 32, tmp_path / "cache").paths
    whole = path.file.read_bytes()
    np.save(path.file, other)
    cached(images, 32, tmp_path / "cache")
    assert path.file.read_bytes() == whole


def test_a_missing_image_is_named(images, tmp_path):
    images.paths[2].unlink()
    with pytest.raises(InputError, match=r"1 of 3 images .*2\.png: No such file"):
        cached(images, 32, tmp_path / "cache")


def test_caches_of_an_older_format_are_not_used(images, tmp_path, monkeypatch):
    first = cached(images, 32, tmp_path / "cache")
    monkeypatch.setattr(module, "FORMAT", module.FORMAT - 1)
    assert cached(images, 32, tmp_path / "cache").paths[0].file != first.paths[0].file


def test_files_are_read_if_the_cache_cannot_be_written(images, tmp_path, capsys):
    """Unreadable images are still reported."""
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / "cache"
    assert decoded(images, 32, folder) is images
    assert f"note: cache {folder}" in capsys.readouterr().out
    images.paths[1].write_bytes(b"")
    for cache in (folder, None):
        with pytest.raises(InputError, match=r"1 of 3 images .*1\.png"):
            decoded(images, 32, cache)
        with pytest.raises(InputError, match="--views batch"):
            decoded(images, 32, cache, required=True)


def test_only_the_user_reads_the_cache(images, tmp_path):
    """Images and names may be of patients."""
    for cache, first in ((tmp_path / "a" / "cache", digests), (tmp_path / "b" / "cache", None)):
        if first:
            first(images.paths, cache)
        decoded(images, 16, cache)
        digests(images.paths, cache)
        for folder in (cache, cache / "contents"):
            assert folder.stat().st_mode & 0o777 == 0o700


def test_a_set_with_a_long_name(images, tmp_path):
    (file,) = {path.file for path in cached(replace(images, name="é" * 127), 8, tmp_path).paths}
    assert file.name.startswith("é" * 50 + "-8px-")


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert module.default_folder() == Path("/x/rare-disease-images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home/y"))
    assert module.default_folder() == Path("/home/y/.cache/rare-disease-images")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert module.default_folder().parent == Path(tempfile.gettempdir())


def test_where_the_pixels_lie_is_told(images, tmp_path, capsys):
    for _ in range(2):  # written, and found
        file = decoded(images, 32, tmp_path / "cache").paths[0].file
        said = capsys.readouterr().out
        assert f"cache: pixels of 3 images, 0.0 MB, {file}; --cache DIR" in said
        assert "--no-cache" in said and said.count("\n") == 1
    decoded(images, 32, None)
    decoded(images, 32, tmp_path / "cache", quiet=True)
    assert capsys.readouterr().out == ""
