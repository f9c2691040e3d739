"""Episodes: what is drawn, in which views; clusters as classes."""

import numpy as np
import pytest
import torch

from baselines import clusters
from baselines.episodes import (
    EpisodeBatches,
    class_groups,
    episode_loader,
    labels_of,
    query_size,
    split_episodes,
)
from baselines.umtra import UMTRASettings
from common.errors import InputError
from datasets import open_dataset
from datasets.cache import cached
from datasets.images import read_image
from moco.augment import plain_view
from trainer.settings import resolve


@pytest.fixture
def base(data):
    return open_dataset(data).base


def batches_of(base, **options):
    options = {"episodes": 2, "n_way": 3, "per_class": 4, "seed": 0, **options}
    return EpisodeBatches([class_groups(base)], len(base), **options)


def test_an_episode_has_different_classes_in_random_order(base):
    batches = batches_of(base)
    labels = np.array(base.labels)
    orders, rows_seen = set(), set()
    for epoch in range(150):
        batches.epoch = epoch
        for keys in batches:
            assert len(keys) == 2 * 3 * 4
            numbers, rows = np.array(keys).T.reshape(2, 2, 3, 4)
            for number, episode in zip(numbers, rows):
                assert len(np.unique(number)) == 1 and len(np.unique(episode)) == 12
                drawn = labels[episode]
                assert (drawn == drawn[:, :1]).all() and len(set(drawn[:, 0])) == 3
                orders.add(tuple(drawn[:, 0]))
            rows_seen.update(rows.flatten().tolist())
    assert len(orders) == 24  # all labelled triples of 4 classes
    assert rows_seen == set(range(len(base)))


def test_small_classes_are_drawn_as_often_as_large_ones():
    groups = [np.arange(2), np.arange(2, 100), np.arange(100, 103)]
    batches = EpisodeBatches([groups], 103, 1, 2, 2, seed=0)
    drawn = [row for number in range(600) for _, row in batches.draw(number)]
    shares = [np.isin(drawn, rows).mean() for rows in groups]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)


def test_episodes_depend_on_seed_and_number_only(base):
    batches = batches_of(base, episodes=1, per_class=2)
    batches.epoch = 1
    epoch = list(batches)
    batches.first = 3
    assert list(batches) == epoch[3:] and len(epoch) == len(base) // 6
    assert [batches.draw(len(batches) + n) for n in range(len(batches))] == epoch
    assert list(batches_of(base, episodes=1, per_class=2, seed=1)) != list(
        batches_of(base, episodes=1, per_class=2)
    )
    numbers = {key[0] for keys in epoch for key in keys}
    assert numbers == set(range(len(batches), 2 * len(batches)))


def test_an_epoch_has_at_least_one_batch(base):
    batches = batches_of(base, episodes=50)
    assert len(batches) == 1 and batches.batch_size == 600 and len(list(batches)) == 1


def test_support_and_query_are_split_class_by_class():
    images = torch.arange(2 * 3 * 5)  # episode × class × image
    episodes = list(split_episodes(images, episodes=2, n_way=3, k_shot=2))
    assert episodes[0][0].tolist() == [0, 1, 5, 6, 10, 11]
    assert episodes[0][1].tolist() == [2, 3, 4, 7, 8, 9, 12, 13, 14]
    assert episodes[1][0].tolist() == [15, 16, 20, 21, 25, 26]
    assert labels_of(episodes[0][1], 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_fewer_query_images_of_small_classes(capsys):
    assert query_size([range(30), range(20)], 5, 15) == 15 and not capsys.readouterr().out
    assert query_size([range(8)], 5, 15) == 3 and "3 query images per class instead of 15" in (
        capsys.readouterr().out
    )
    with pytest.raises(InputError, match="--k-shot 8"):
        query_size([range(8)], 8, 15)


@pytest.mark.parametrize("views_by", ["pil", "batch"])
def test_umtra_pairs(base, tmp_path, views_by):
    """A class is one image: the image itself, and random views of it; N different ones."""
    base = cached(base, 32, tmp_path)
    settings = resolve(
        UMTRASettings,
        {"data": "D", "model_path": "M", "arch": "conv4", "image_size": 32, "workers": 0,
         "views_by": views_by},
    )  # fmt: skip
    assert settings.aug_plus and (settings.query, settings.batch_size) == (5, 8)
    each = np.arange(len(base))[:, None]
    batches = EpisodeBatches([each], len(base), 2, 3, 1, 0, views=6)
    loader = episode_loader(base, batches, settings, torch.device("cpu"), views=5, plain=True)
    plain = torch.stack([plain_view(32)(read_image(path)) for path in base.paths])
    seen = {}
    for epoch in range(30):
        batches.epoch = epoch
        for views, rows in loader:
            assert len(views) == 6 and views[0].shape == (6, 3, 32, 32)
            assert all(len(set(episode.tolist())) == 3 for episode in rows.view(2, 3))
            assert torch.allclose(views[0], plain[rows], atol=1e-6)
            for view in views[1:]:
                assert (view - views[0]).abs().amax(dim=(1, 2, 3)).min() > 0.01
            both = [torch.stack(views[1:], dim=1)[i] for i in range(6)]
            for row, queries in zip(rows.tolist(), both):
                assert (queries[0] - queries[1]).abs().max() > 1e-3
                if row in seen:  # other views in another episode
                    assert (queries - seen[row]).abs().max() > 1e-3
                seen[row] = queries
    assert len(seen) > len(base) / 2


def blobs(number=3, size=30):
    generator = np.random.default_rng(0)
    centres = 10 * np.eye(number, 6)
    return np.concatenate([c + generator.normal(0, 0.3, (size, 6)) for c in centres])


def test_clusters_are_found_and_repeatable():
    z = blobs()
    found = clusters.partition(z, 3, 3, seed=0)
    for labels in found[:1]:
        parts = labels.reshape(3, 30)
        assert (parts == parts[:, :1]).all() and len(set(parts[:, 0])) == 3
    assert np.array_equal(found, clusters.partition(z, 3, 3, seed=0))
    finer = clusters.partition(z, 9, 3, seed=0)
    other = clusters.partition(z, 9, 3, seed=1)
    pairs = [labels[:, None] == labels for labels in (*finer, other[0])]  # without their numbers
    assert all((a != b).any() for n, a in enumerate(pairs) for b in pairs[:n])


def test_only_large_clusters_are_used():
    labels = np.repeat([0, 1, 2, 3], [10, 8, 8, 2])
    groups, query = clusters.groups_of(np.stack([labels, labels[::-1]]), 1, 15, n_way=3)
    assert query == 5  # the lower quartile of the sizes is 6.5
    assert [[len(rows) for rows in part] for part in groups] == [[10, 8, 8]] * 2
    assert all(len(set(labels[rows])) == 1 for rows in groups[0])
    with pytest.raises(InputError, match="reduce --clusters"):
        clusters.groups_of(labels[None], 1, 5, n_way=4)


def test_classes_of_an_episode_are_clusters_of_one_partition():
    partitions = np.stack([np.arange(60) // 20, np.arange(60) % 3])
    groups, query = clusters.groups_of(partitions, 1, 4, n_way=3)
    batches = EpisodeBatches(groups, 60, 1, 3, 1 + query, seed=0)
    used = set()
    for number in range(40):
        rows = np.array(batches.draw(number))[:, 1].reshape(3, 1 + query)
        assert len(np.unique(rows)) == rows.size  # support and query are disjoint
        fits = [
            all(len(set(part)) == 1 for part in labels[rows]) and len(set(labels[rows[:, 0]])) == 3
            for labels in partitions
        ]
        assert any(fits)
        used.add(tuple(fits))
    assert {(True, False), (False, True)} <= used


def test_whitening_leaves_out_directions_without_variance():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(200, 4)) * [5, 1, 1, 0.2] @ generator.normal(size=(4, 10)) + 3
    white = clusters.whiten(z.astype(np.float32))
    assert white.shape == (200, 5)  # four dimensions and the mean's direction
    assert np.linalg.norm(white, axis=1) == pytest.approx(1)
    variances = np.cov(white.T).diagonal()
    assert np.abs(np.cov(white.T) - np.diag(variances)).max() < 0.1 < variances.min()


@pytest.mark.parametrize("same", [np.zeros(8), np.random.default_rng(0).normal(size=8)])
def test_a_collapsed_encoder_is_refused(same):
    with pytest.raises(InputError, match="same embedding for all images"):
        clusters.whiten(np.tile(same.astype(np.float32), (50, 1)))
