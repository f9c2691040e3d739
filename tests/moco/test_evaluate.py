"""Embeddings, the classifier on the support set, k-NN scores."""

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError
from datasets import open_dataset
from datasets.cache import cached, pixels
from datasets.episode import draw_task
from datasets.images import read_image
from moco.augment import plain_view
from moco.evaluate import (
    FrozenEncoder,
    can_score_knn,
    encode,
    fit_classifier,
    knn_score,
    linear_map,
    normalize_by_image,
    regressions,
)
from models import build_encoder
from trainer.performance import prepare


def test_encode_is_in_order_in_evaluation_mode(data):
    rare = open_dataset(data).rare
    encoder = build_encoder("resnet12", 8).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    found = encode(encoder, rare, 32, batch_size=5)
    assert found.shape == (len(rare), 8)
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    with torch.no_grad():
        view = plain_view(32)(read_image(rare.paths[7]))
        alone = encoder.eval()(view[None])[0]
    np.testing.assert_allclose(found[7], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch, size", [
    ("conv4_released", 64), ("resnet12", 32), ("timm/test_efficientnet", 96),
])  # fmt: skip
def test_statistics_of_each_image(arch, size):
    """As training mode computes it for the image alone, whatever else is in the batch."""
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    encoder = build_encoder(arch, 8, image_size=size).eval()
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        for layer in encoder.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 2)
                layer.bias.normal_()
        running = encoder(images)
        for layer in encoder.modules():
            layer.train(isinstance(layer, nn.BatchNorm2d))
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.0
        alone = torch.cat([encoder(image[None]) for image in images])
        encoder.eval()
        assert torch.equal(encoder(images), running)  # momentum 0 changes no statistics
        normalize_by_image(encoder, size)
        torch.testing.assert_close(encoder(images), alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(running, alone, rtol=0.1)


def test_statistics_of_one_pixel_or_none():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4)).eval()
    with pytest.raises(InputError, match="at 16 pixels .*one pixel"):
        normalize_by_image(encoder, 16)
    with pytest.raises(InputError, match="no BatchNorm"):
        normalize_by_image(nn.Conv2d(3, 4, 3), 16)


def test_cached_images_have_the_same_embeddings(data, tmp_path):
    """A whole set, a reordered subset, and a cache of another size."""
    rare, encoder = open_dataset(data).rare, build_encoder("conv4", 8)
    expected = encode(encoder, rare, 32)
    images = cached(rare, 32, tmp_path)
    assert pixels(images).shape == (len(rare), 32, 32, 3)
    np.testing.assert_allclose(encode(encoder, images, 32), expected, atol=1e-6)
    subset = images.take(rare.ids[9:2:-1])
    np.testing.assert_allclose(encode(encoder, subset, 32), expected[9:2:-1], atol=1e-6)
    other_size = encode(encoder, cached(rare, 48, tmp_path), 32)
    assert np.abs(other_size - expected).max() > 1e-4  # resized twice


def test_embeddings_in_mixed_precision(data):
    rare, encoder = open_dataset(data).rare, build_encoder("resnet12", 8)
    expected = encode(encoder, rare, 32)
    prepare(encoder, torch.device("cpu"), amp=True)
    found = encode(encoder, rare, 32)
    assert found.dtype == np.float32 and 0 < np.abs(found - expected).max() < 0.05 * expected.std()


def test_a_compiled_encoder_is_not_compiled_anew(data):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    encoder = build_encoder("conv4", 8).train()
    encoder.compile(backend=backend, dynamic=False)
    encoder(torch.rand(2, 3, 32, 32))
    assert len(graphs) == 1
    encode(encoder, open_dataset(data).rare, 32, batch_size=5)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_encode_encodes_each_image_once(data):
    rare = open_dataset(data).rare
    seen = []

    class Counting(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return images.flatten(1)[:, :4]

    encode(Counting(), rare, 32, batch_size=8)
    assert sum(seen) == len(rare)


@pytest.mark.parametrize("augnum", [0, 3])
def test_fit_on_support(data, augnum):
    rare = open_dataset(data).rare
    support = rare.take([rare.ids[0], rare.ids[1], rare.ids[-1], rare.ids[-2]], ("DF", "VASC"))
    weights = {f"query_encoder.{k}": v for k, v in build_encoder("conv4", 8).state_dict().items()}
    args = dict(arch="conv4", moco_dim=8, mlp=False, image_size=32, aug_plus=False)
    encoder = FrozenEncoder({"stage": "moco", "args": args, "state_dict": weights})
    copies = encoder.copies(support, augnum)
    assert copies.shape == (4, max(augnum, 1), 8)
    f_c = fit_classifier(copies, support.labels)
    expected = fit_classifier(copies.reshape(-1, 8), np.repeat(support.labels, copies.shape[1]))
    np.testing.assert_array_equal(f_c[-1].coef_, expected[-1].coef_)
    if augnum:  # the copies of an image differ, and are the same in any set
        assert len(np.unique(copies.reshape(-1, 8), axis=0)) == 4 * augnum
        other = encoder.copies(support.take(support.ids[2:0:-1]), augnum)
        np.testing.assert_allclose(other, copies[2:0:-1], atol=1e-6)


def test_regressions_fit_each_task_on_its_own_support_set(data):
    rare = open_dataset(data).rare
    weights = {f"query_encoder.{k}": v for k, v in build_encoder("conv4", 8).state_dict().items()}
    args = dict(arch="conv4", moco_dim=8, mlp=False, image_size=32, aug_plus=False)
    encoder = FrozenEncoder({"stage": "moco", "args": args, "state_dict": weights})
    predict = regressions(encoder, rare, rare, augnum=2)
    for seed in (0, 1):
        task = draw_task(rare, 2, 2, seed)
        support, query = task.support(rare), task.query(rare)
        f_c = fit_classifier(encoder.copies(support, 2), support.labels)
        expected = f_c.predict_proba(encoder.embed(query))
        found, about = predict(support, query)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert about == {}


@pytest.mark.parametrize("normalize", [False, True])
def test_the_classifier_has_converged(normalize):
    """Small changes of the embeddings cause small changes of the probabilities, at any scale."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 25)
    support = generator.normal(0, 3, (75, 64)) + np.eye(3, 64)[labels]
    support[:, :8] *= 20  # embeddings are far from isotropic
    query = generator.normal(0, 3, (200, 64)).astype(np.float32)
    noise = generator.uniform(-1e-6, 1e-6, support.shape)
    found = fit_classifier(support, labels, normalize).predict_proba(query)
    nearby = fit_classifier(support + noise, labels, normalize).predict_proba(query)
    assert found.dtype == np.float64
    np.testing.assert_allclose(nearby, found, atol=1e-5)


def test_normalize():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 5)
    support, query = generator.normal(0, 3, (15, 8)), generator.normal(0, 3, (9, 8))

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    found = fit_classifier(support, labels, normalize=True).predict_proba(7 * query)
    expected = fit_classifier(unit(support), labels).predict_proba(unit(query))
    np.testing.assert_allclose(found, expected)
    assert not np.allclose(found, fit_classifier(support, labels).predict_proba(7 * query))


def test_knn_score_of_good_and_bad_embeddings():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    good = np.eye(3)[labels] + generator.normal(0, 0.1, (100, 3))
    assert knn_score(good, labels)["knn_balanced"] > 0.95
    bad = knn_score(generator.normal(0, 1, (100, 3)), labels)
    assert bad["knn_balanced"] < 0.5
    assert can_score_knn(labels) and not can_score_knn([0] * 99 + [1])
    assert not can_score_knn([0] * 100)  # always right


@pytest.mark.parametrize("n_way", [2, 3, 4])
def test_the_classifier_as_a_linear_map(n_way):
    generator = np.random.default_rng(n_way)
    embeddings, labels = generator.normal(size=(5 * n_way, 6)), np.arange(5 * n_way) % n_way
    f_c = fit_classifier(embeddings, labels)
    found = linear_map(f_c)
    assert found.shape == (n_way, 7)
    logits = torch.from_numpy(embeddings @ found[:, :-1].T + found[:, -1])
    np.testing.assert_allclose(logits.softmax(dim=1), f_c.predict_proba(embeddings))
    assert linear_map(fit_classifier(embeddings, labels, normalize=True)) is None


def test_a_diverged_network_is_refused(data):
    """Finite weights, but products above the largest float32: not a class 0 by NaN."""
    encoder = build_encoder("conv4", 8).eval()
    for weights in encoder.parameters():
        weights.data.mul_(1e20)
    with pytest.raises(InputError, match="NaN or Inf for 25 of 25 images"):
        encode(encoder, open_dataset(data).rare, 32)
