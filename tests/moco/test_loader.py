"""The order of images; views depend only on seed, epoch and row."""

import torch
from torch.utils.data import DataLoader

from datasets import open_dataset
from moco.augment import random_view
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
