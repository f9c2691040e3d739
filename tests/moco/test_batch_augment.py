"""Batched views against PIL: the same images, and parameters of the same distributions."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as pil

from datasets.cache import cached, pixels
from datasets.images import image_set
from moco import loader
from moco.augment import gaussian_blur, random_view
from moco.batch_augment import (
    Parameters,
    apply,
    draw_parameters,
    draw_views,
    gaussian_matrix,
    to_float,
    uniforms,
)
from moco.loader import BatchViews, EpochBatches

SIZE = 48


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Smooth colourful images, for which PIL differs only by rounding after each step."""
    torch.manual_seed(0)
    small = torch.rand(6, 3, 6, 6)
    large = torch.nn.functional.interpolate(small, size=SIZE, mode="bicubic").clamp(0, 1)
    return [pil.to_pil_image(image) for image in large]


def tensors(pictures) -> torch.Tensor:
    return torch.stack([pil.to_tensor(picture) for picture in pictures])


def one_by_one(picture: Image.Image, p: Parameters, i: int) -> torch.Tensor:
    """Apply the transforms of `augment.random_view` with the parameters `p` of image i."""
    box = [int(getattr(p, name)[i]) for name in ("top", "left", "height", "width")]
    picture = pil.resized_crop(picture, *box, [SIZE, SIZE])
    for operation in p.order[i].tolist():
        if operation == 3:
            if p.hue is not None:
                picture = pil.adjust_hue(picture, p.hue[i].item())
        else:
            name = ("brightness", "contrast", "saturation")[operation]
            picture = getattr(pil, f"adjust_{name}")(picture, getattr(p, name)[i].item())
    if p.grey is not None and p.grey[i]:
        picture = pil.to_grayscale(picture, 3)
    if p.sigma[i] > 0:
        sigma = p.sigma[i].item()
        picture = gaussian_blur(picture, (sigma, sigma))
    return pil.to_tensor(pil.hflip(picture) if p.flip[i] else picture)


@pytest.mark.parametrize("aug_plus", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_views_equal_pil(pictures, seed, aug_plus):
    p = draw_parameters(seed, torch.arange(6), SIZE, aug_plus)
    found = apply(tensors(pictures), p)
    assert found.shape == (6, 3, SIZE, SIZE)
    assert found.min() > -1e-5 and found.max() < 1 + 1e-5
    for i, picture in enumerate(pictures):
        difference = (found[i] - one_by_one(picture, p, i)).abs()
        assert difference.mean() < 2 / 255 and difference.max() < 0.06, (i, p)


def test_neutral_parameters_change_nothing(pictures):
    p = draw_parameters(0, torch.arange(6), SIZE, aug_plus=True)
    zero, one, no = torch.zeros(6), torch.ones(6), torch.zeros(6, dtype=torch.bool)
    p = dataclasses.replace(
        p, top=zero, left=zero, height=one * SIZE, width=one * SIZE, brightness=one, contrast=one,
        saturation=one, hue=zero, grey=no, sigma=zero, flip=no,
    )  # fmt: skip
    assert torch.allclose(apply(tensors(pictures), p), tensors(pictures), atol=1e-5)


def test_distributions_match_torchvision():
    """Means, standard deviations and probabilities of the parameters of 4,000 views."""
    count = 4000
    p = draw_parameters(3, torch.arange(count), 84, aug_plus=True)
    torch.manual_seed(0)
    image = Image.new("RGB", (84, 84))
    boxes = [RandomResizedCrop.get_params(image, (0.2, 1), (3 / 4, 4 / 3)) for _ in range(count)]
    top, left, height, width = torch.tensor(boxes, dtype=torch.float).T
    pairs = {
        "area": (p.height * p.width, height * width),
        "aspect": (p.width / p.height, width / height),
        "top": (p.top, top),
        "left": (p.left, left),
    }
    for name, (ours, theirs) in pairs.items():
        error = 4 * (ours.var() / count + theirs.var() / count).sqrt()
        assert abs(ours.mean() - theirs.mean()) < error, name
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.08), name
    assert (p.top + p.height).max() <= 84 and (p.left + p.width).max() <= 84
    assert p.top.min() >= 0 and p.left.min() >= 0

    jittered = p.brightness != 1
    tolerance = 4 * 0.5 / math.sqrt(count)
    for happens, probability in (
        (jittered, 0.8), (p.grey, 0.2), (p.sigma > 0, 0.5), (p.flip, 0.5),
    ):  # fmt: skip
        assert happens.float().mean().item() == pytest.approx(probability, abs=tolerance)
    for factor in (p.brightness, p.contrast, p.saturation):
        uniform_between(factor[jittered], 0.6, 1.4)
    uniform_between(p.hue[jittered], -0.1, 0.1)
    uniform_between(p.sigma[p.sigma > 0], 0.1, 2.0)
    orders, times = p.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and (times / count).std() < 0.01
    assert not torch.equal(p.brightness[jittered], p.contrast[jittered])


def uniform_between(values: torch.Tensor, low: float, high: float) -> None:
    assert low <= values.min() and values.max() <= high
    shares = values.histc(8, low, high) / len(values)
    assert (shares - 1 / 8).abs().max() < 0.025


def test_without_aug_plus_no_hue_and_no_grey():
    p = draw_parameters(0, torch.arange(4), SIZE)
    assert p.hue is None and p.grey is None
    plus = draw_parameters(0, torch.arange(4), SIZE, aug_plus=True)
    assert torch.equal(p.brightness, plus.brightness) and torch.equal(p.flip, plus.flip)


def test_blur_keeps_the_mean_and_repeats_the_edge():
    blur = gaussian_matrix(torch.tensor([0.0, 0.7, 2.0]), 20)
    assert torch.allclose(blur.sum(dim=2), torch.ones(3, 20))
    assert torch.allclose(blur[0], torch.eye(20))
    assert blur[2, 0, 0] > blur[2, 10, 10]  # replicated edge


def test_uniforms():
    u = uniforms(5, torch.arange(3000), 10)
    assert 0 <= u.min() and u.max() < 1
    uniform_between(u.flatten(), 0, 1)
    u_all = torch.cat([u, u.roll(1, 0), uniforms(6, torch.arange(3000), 10)], 1)
    assert (torch.corrcoef(u_all.T) - torch.eye(30)).abs().max() < 0.08
    assert torch.equal(uniforms(5, torch.tensor([7, 2]), 10), u[[7, 2]])


def views_of(images, rows, size, views, seed, epoch):
    return [apply(to_float(images), p) for p in draw_views(rows, size, views, seed, epoch)]


def test_views_depend_only_on_seed_epoch_and_row():
    """Not on the rest of the batch; views, epochs and seeds differ."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    rows = torch.tensor([5, 9, 1, 0])
    both = views_of(images, rows, 32, 2, 0, 3)
    alone = views_of(images[1:2], rows[1:2], 32, 2, 0, 3)
    for a, b in zip(both, alone):
        assert torch.allclose(a[1:2], b, atol=1e-6)
    others = [both[1]]
    for seed, epoch in ((0, 4), (1, 3)):
        others += views_of(images, rows, 32, 1, seed, epoch)
    assert all((both[0] - other).abs().mean() > 0.01 for other in others)


@pytest.mark.parametrize("aug_plus", [False, True])
def test_parameters_drawn_at_once(aug_plus, monkeypatch):
    """Those of an epoch, or of a part, are bit for bit those of each batch."""
    batches = EpochBatches(70, 6, seed=0)
    pixels = torch.randint(256, (70, 32, 32, 3), dtype=torch.uint8).numpy()
    views = []
    for chunk in (1, 4, 256):
        monkeypatch.setattr(loader, "CHUNK", chunk)
        cpu = torch.device("cpu")
        views.append(list(BatchViews(pixels, batches, 2, 0, aug_plus, cpu)))
    assert len(views[0]) == 11
    for batch in zip(*views):
        for (im_q, im_k), rows in batch[1:]:
            assert torch.equal(rows, batch[0][1])
            assert torch.equal(im_q, batch[0][0][0]) and torch.equal(im_k, batch[0][0][1])
    rows = torch.arange(70)
    whole = draw_parameters(3, rows, 224, aug_plus).split(8)
    for part, of_rows in zip(whole, rows.split(8)):
        alone = draw_parameters(3, of_rows, 224, aug_plus)
        for field in dataclasses.fields(Parameters):
            a, b = getattr(part, field.name), getattr(alone, field.name)
            assert (a is b is None) or torch.equal(a, b), field.name


@pytest.mark.parametrize("aug_plus", [False, True])
def test_compiled_views_are_one_graph(pictures, aug_plus):
    """Compiled once for all batches; the values are those of `apply`."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(apply, backend=backend, dynamic=False, fullgraph=True)
    for seed in range(3):
        p = draw_parameters(seed, torch.arange(6), SIZE, aug_plus)
        assert torch.equal(compiled(tensors(pictures), p), apply(tensors(pictures), p))
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.slow
def test_views_by_the_compiler(pictures):
    p = draw_parameters(1, torch.arange(6), SIZE, aug_plus=True)
    compiled = torch.compile(apply, dynamic=False)
    found, expected = compiled(tensors(pictures), p), apply(tensors(pictures), p)
    # Rounding may change the branch of a hue.
    assert ((found - expected).abs() < 1e-4).float().mean() > 0.999


def test_batches(tmp_path):
    rows = []
    for n in range(5):
        Image.fromarray(np.full((40, 40, 3), 50 * n, np.uint8)).save(tmp_path / f"{n}.png")
        rows.append((str(n), tmp_path / f"{n}.png", "x"))
    images = image_set("synthetic", ("x",), rows)
    assert pixels(images) is None
    found = pixels(cached(images, 32, tmp_path / "cache"))
    assert found.shape == (5, 32, 32, 3) and found[3, 0, 0, 0] == 150
    batches = EpochBatches(5, 2, seed=0)
    batches.epoch = 2
    views = BatchViews(found, batches, 2, 0, False, torch.device("cpu"))
    got = list(views)
    assert len(got) == len(views) == 2
    for (views, rows), keys in zip(got, batches):
        assert rows.tolist() == [row for _, row in keys]
        assert [view.shape for view in views] == [(2, 3, 32, 32)] * 2


def test_batched_and_pil_views_have_equal_statistics(pictures):
    """Pixel means and standard deviations of 300 views of an image."""
    image = torch.from_numpy(np.array(pictures[0]))[None]
    rows = torch.arange(300)
    (ours,) = views_of(image.expand(300, -1, -1, -1), rows, SIZE, 1, 0, 0)
    torch.manual_seed(0)
    theirs = torch.stack([random_view(SIZE)(pictures[0]) for _ in range(300)])
    for statistic in (torch.mean, torch.std):
        a, b = (statistic(views, dim=(2, 3)).mean(dim=0) for views in (ours, theirs))
        assert torch.allclose(a, b, atol=0.02), (a, b)
