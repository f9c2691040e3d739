"""The order of images; views depend only on seed, epoch and row."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, get_worker_info

from conftest import REPOSITORY, TINY, call, refused, states_equal
from datasets import open_dataset
from datasets.images import read_image
from moco.augment import random_view
from moco.checkpoint import load_checkpoint
from moco.evaluate import encode
from moco.loader import EpochBatches, RandomViews


def test_batches_cover_a_shuffled_epoch():
    batches = EpochBatches(images=37, batch_size=8, seed=0)
    batches.epoch = 3
    found = list(batches)
    rows = [row for batch in found for _, row in batch]
    assert len(found) == len(batches) == 4 and all(len(batch) == 8 for batch in found)
    assert {epoch for batch in found for epoch, _ in batch} == {3}
    assert len(set(rows)) == 32 and set(rows) <= set(range(37)) and rows != sorted(rows)
    assert list(batches) == found
    batches.epoch = 4
    assert [row for batch in batches for _, row in batch] != rows


def test_processes_share_each_batch(monkeypatch):
    alone = list(EpochBatches(images=37, batch_size=8, seed=0))
    shares = []
    for rank in range(4):
        monkeypatch.setattr("moco.loader.world_size", lambda: 4)
        monkeypatch.setattr("moco.loader.rank", lambda rank=rank: rank)
        shares.append(list(EpochBatches(images=37, batch_size=8, seed=0)))
    assert [sum(parts, []) for parts in zip(*shares)] == alone


def test_views_depend_only_on_seed_epoch_and_image(data):
    base = open_dataset(data).base

    def all_views(workers, seed, epoch):
        batches = EpochBatches(len(base), 8, seed=1)
        batches.epoch = epoch
        loader = DataLoader(
            RandomViews(base, random_view(32), 2, seed), batch_sampler=batches, num_workers=workers
        )
        return {int(r): v for views, rows in loader for r, *v in zip(rows, *views)}

    main_process, workers = all_views(0, 5, 0), all_views(2, 5, 0)
    assert main_process.keys() == workers.keys() and len(workers) == 32
    for row, (im_q, im_k) in main_process.items():
        assert torch.equal(im_q, workers[row][0]) and torch.equal(im_k, workers[row][1])
        assert not torch.equal(im_q, im_k)
    for other in (all_views(0, 6, 0), all_views(0, 5, 1)):
        common = workers.keys() & other.keys()
        assert not any(torch.equal(other[row][0], workers[row][0]) for row in common)


def test_views_do_not_touch_the_global_random_state(data):
    views = RandomViews(open_dataset(data).base, random_view(32), 1, seed=0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    views[0, 0]
    assert torch.equal(torch.rand(2), expected)


READERS = ["-j", 2, "--views", "pil", "--no-cache", "--epochs", 2]


def train(data, folder):
    """Train with two data-loading processes; return the last state."""
    call("main_moco", data, "--model-path", folder, *TINY, *READERS)
    return load_checkpoint(folder)["state_dict"]


@pytest.fixture
def cores(monkeypatch):
    """Two, and processes that have what a test patches, which is not the default from 3.14 on."""
    monkeypatch.setattr("trainer.distributed.available_cpus", lambda: 2)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def no_shared_memory(views):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


@pytest.mark.parametrize("short", ["shared memory", "files"])
def test_without_shared_memory(short, data, tmp_path, capsys, monkeypatch, cores):
    """The same training and embeddings, by way of a pipe, with one note each."""
    expected = train(data, tmp_path / "a")
    assert "/dev/shm" not in capsys.readouterr().out
    images, encoder = open_dataset(data).rare, nn.Flatten()
    embeddings = encode(encoder, images, 32)
    if short == "files":
        monkeypatch.setattr("moco.loader.open_files_limit", lambda: 64)
        monkeypatch.setattr("moco.loader.default_collate", None)
    else:
        monkeypatch.setattr("moco.loader.default_collate", no_shared_memory)
    assert states_equal(train(data, tmp_path / "b"), expected)
    (note,) = [x for x in capsys.readouterr().out.splitlines() if "/dev/shm" in x]
    assert all(part in note for part in ("--workers 0", "--shm-size", "ulimit -n"))
    assert (encode(encoder, images, 32, workers=2) == embeddings).all()
    assert capsys.readouterr().out.count("note") == 1


def test_readers_that_cannot_start(data, capsys, monkeypatch):
    """The main process loads instead, and none of them is left."""
    images = open_dataset(data).rare
    expected = encode(nn.Flatten(), images, 32)
    started, start = [], BaseProcess.start

    def start_one(process):
        if started:
            raise OSError(errno.EMFILE, "Too many open files")
        started.append(process)
        start(process)

    monkeypatch.setattr(BaseProcess, "start", start_one)
    found = encode(nn.Flatten(), images, 32, workers=2)
    assert (found == expected).all()
    captured = capsys.readouterr()
    assert "cannot start data-loading processes (Too many open files)" in captured.out
    assert not captured.err
    started[0].join(10)
    assert started[0].exitcode is not None


def read_and_die(path, **options):
    if get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(path, **options)


def test_a_killed_reader(data, tmp_path, capsys, monkeypatch, cores):
    """One line; the same command, once there is memory, ends as if nothing had happened."""
    expected = train(data, tmp_path / "a")
    argv = [data, "--model-path", tmp_path / "b", *TINY, *READERS]
    with monkeypatch.context() as patch:
        patch.setattr("moco.loader.read_image", read_and_die)
        error = refused(capsys, patch, "main_moco", *argv)
    assert "data-loading process was killed" in error and "--workers 0" in error
    assert states_equal(train(data, tmp_path / "b"), expected)


def test_a_killed_reader_of_a_frozen_encoder(chain, data, tmp_path, capsys, monkeypatch, cores):
    argv = ["--resume", chain.student, "--load-cla", "--no-cache", "-j", 2, "--output", tmp_path]
    monkeypatch.setattr("datasets.images.read_image", read_and_die)
    error = refused(capsys, monkeypatch, "test", data, *argv)
    assert "data-loading process was killed" in error and not list(tmp_path.glob("test_*"))


LIMITS = {  # of a machine: the shell command that sets them, and what the run says
    "files": ("ulimit -n 64", "ulimit -n"),
    "a few files": ("ulimit -n 32", "ulimit -n"),
    "no /dev/shm": ("mount -t tmpfs -o size=4k tmpfs /dev/shm", "using the main process"),
    "Docker's /dev/shm": ("mount -t tmpfs -o size=256k tmpfs /dev/shm", "--shm-size"),
}


def own_mounts():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_on_a_small_machine(limit, data, tmp_path):
    """With a small /dev/shm (256 KB for images of 32 pixels) or few files, training goes on."""
    setting, note = LIMITS[limit]
    if "mount" in setting and (os.geteuid() or not own_mounts()):
        pytest.skip("mounting needs root")
    argv = [data, "--model-path", tmp_path / "b", *TINY, *READERS]
    command = f'{setting} && exec "$@"'
    unshare = ["unshare", "-m"] if "mount" in setting else []
    ran = subprocess.run(
        [*unshare, "sh", "-c", command, "sh", sys.executable, "main_moco.py", *map(str, argv)],
        cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    assert "2 epochs done" in ran.stdout
    assert note in ran.stdout, ran.stdout
