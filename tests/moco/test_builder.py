"""The encoder pair and the queue."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gloo_workers
from gloo_workers import plan
from moco.builder import GroupedBatchNorm2d, MoCo, Student, contrast_accuracy, group_batchnorm
from moco.losses import contrastive_loss
from models import build_encoder
from trainer.launch import launch


def make(kind=MoCo, **options):
    torch.manual_seed(0)
    encoder = functools.partial(build_encoder, "conv4", 16)
    return kind(encoder, embedding_dim=16, queue_size=12, **options)


@pytest.fixture
def views():
    torch.manual_seed(1)
    return torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)


def test_starts_with_equal_encoders_and_a_normalised_queue():
    model = make()
    for q, k in zip(model.query_encoder.parameters(), model.key_encoder.parameters()):
        assert torch.equal(q, k)
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(12))


def test_queue_replaces_the_oldest_and_wraps():
    model = make()
    first = model.queue.clone()
    for number in range(5):
        model.enqueue(torch.full((4, 16), float(number)))
    assert model.queue_position.item() == 5 * 4 % 12
    assert model.queue[:, 0].tolist() == [3] * 4 + [4] * 4 + [2] * 4
    # Keys beyond the end wrap around.
    model = make()
    model.queue_position.fill_(10)
    model.enqueue(torch.arange(4.0)[:, None].expand(4, 16))
    assert model.queue[:, 0][[10, 11, 0, 1]].tolist() == [0, 1, 2, 3]
    assert torch.equal(model.queue[2:10], first[2:10])


def test_momentum_update():
    model = make(encoder_momentum=0.9)
    before = [p.clone() for p in model.key_encoder.parameters()]
    with torch.no_grad():
        for p in model.query_encoder.parameters():
            p.add_(torch.randn_like(p))
    model.update_key_encoder()
    for old, new, q in zip(
        before, model.key_encoder.parameters(), model.query_encoder.parameters()
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * q)


def test_logits_use_the_queue_before_this_batch(views):
    model = make().eval()
    queue = model.queue.clone()
    logits, embeddings = model(*views)
    q = F.normalize(model.query_encoder(views[0]), dim=1)
    k = F.normalize(model.key_encoder(views[1]), dim=1)
    torch.testing.assert_close(logits[:, 0], (q * k).sum(dim=1) / 0.07)
    torch.testing.assert_close(logits[:, 1:], q @ queue.T / 0.07)
    torch.testing.assert_close(model.queue[:4], k)  # keys in the images' order
    assert torch.equal(model.queue[4:], queue[4:])
    torch.testing.assert_close(F.normalize(embeddings, dim=1), q)


def test_no_gradient_to_keys(views):
    model = make()
    logits, _ = model(*views)
    contrastive_loss(logits).backward()
    assert all(p.grad is not None for p in model.query_encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.key_encoder.parameters())
    assert not model.queue.requires_grad


def test_keys_are_shuffled_between_groups(views):
    """Keys of the same images differ between shuffles, which they would not in fixed groups."""
    model = make(batchnorm_groups=2)
    torch.manual_seed(3)
    distinct = {tuple(model.encode_keys(views[1])[0].tolist()) for _ in range(10)}
    assert len(distinct) > 1
    ungrouped = make(batchnorm_groups=1)
    keys = torch.stack([ungrouped.encode_keys(views[1]) for _ in range(3)])
    torch.testing.assert_close(keys[0], keys[1])  # one group: the order does not matter


def test_grouped_batchnorm_is_batchnorm_of_each_group():
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4, 4) * 3 + 1
    grouped, plain = GroupedBatchNorm2d(5, groups=3), nn.BatchNorm2d(5)
    expected = torch.cat([plain(x[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(grouped(x), expected)


def test_grouped_running_statistics_are_the_mean_over_groups():
    x = torch.randn(8, 2, 16, 16) * torch.arange(1.0, 9)[:, None, None, None]
    grouped, alone = GroupedBatchNorm2d(2, groups=4), [nn.BatchNorm2d(2) for _ in range(4)]
    for batch in (x, x.flip(0)):
        grouped(batch)
        for norm, part in zip(alone, batch.chunk(4)):
            norm(part)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(norm, name) for norm in alone]).mean(dim=0)
        torch.testing.assert_close(getattr(grouped, name), expected)
    assert grouped.num_batches_tracked == 2
    grouped.eval()
    torch.testing.assert_close(grouped(x[:3]), grouped(x)[:3])


def test_without_groups_batchnorm_keeps_its_statistics():
    kept = GroupedBatchNorm2d(5, groups=0)
    nn.init.normal_(kept.running_mean), nn.init.uniform_(kept.running_var), kept.train()
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    x = (torch.randn(6, 5, 4, 4) * 3 + 1).requires_grad_()
    found = kept(x)
    found.sum().backward()  # trains weight and bias
    assert kept.weight.grad.abs().sum() > 0 and kept.bias.grad.tolist() == [96] * 5
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())
    torch.testing.assert_close(found, kept.eval()(x))


def test_group_batchnorm_keeps_the_state_dict():
    plain = build_encoder("resnet12", 16)
    keys = list(plain.state_dict())
    grouped = group_batchnorm(build_encoder("resnet12", 16), 4)
    assert list(grouped.state_dict()) == keys
    assert not any(type(m) is nn.BatchNorm2d for m in grouped.modules())


def test_student_needs_one_forward_pass(views):
    model = make(Student, n_way=3)
    calls = []
    model.query_encoder.register_forward_hook(lambda *_: calls.append(1))
    contrastive, embeddings, logits = model(*views)
    assert contrastive.shape == (4, 13) and logits.shape == (4, 3)
    assert torch.equal(logits, model.classifier(embeddings))
    assert len(calls) == 1
    (contrastive_loss(contrastive) + logits.logsumexp(dim=1).mean()).backward()
    assert model.classifier.linear.weight.grad.abs().sum() > 0


def test_contrast_accuracy():
    logits = torch.tensor([[9.0, *range(8)], [3.5, *range(8)], [2.5, *range(8)], [0.0, *range(8)]])
    found = contrast_accuracy(logits)
    assert found["acc1"] == 0.25 and found["acc5"] == 0.5


def test_contrast_accuracy_of_a_collapsed_encoder():
    """Ties count against the positive."""
    assert contrast_accuracy(torch.zeros(4, 9)) == {"acc1": 0, "acc5": 0}


def test_two_processes_equal_one_with_the_same_batchnorm_groups(tmp_path):
    launch(plan(None), gloo_workers.contrast, tmp_path, 2, 4)
    launch(plan(2), gloo_workers.contrast, tmp_path, 1, 4)
    one, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("1_0.pt", "2_0.pt", "2_1.pt")
    )
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    for name in ("queue", "queue_position"):
        assert torch.equal(first["state"][name], second["state"][name])
        torch.testing.assert_close(first["state"][name], one["state"][name], rtol=1e-4, atol=1e-5)
    for name in ("query_encoder.head.weight", "key_encoder.backbone.blocks.0.0.weight"):
        torch.testing.assert_close(first["state"][name], one["state"][name], rtol=1e-3, atol=1e-5)
    for encoder in ("query_encoder", "key_encoder"):
        for kind in ("running_mean", "running_var"):
            name = f"{encoder}.backbone.blocks.1.1.{kind}"
            assert torch.equal(first["state"][name], second["state"][name])
            torch.testing.assert_close(
                first["state"][name], one["state"][name], rtol=1e-3, atol=1e-5
            )
    # The queue of 24 keys has been overwritten completely.
    assert one["state"]["queue_position"].item() == 4 * 8 % 24


def test_the_batchnorm_groups_matter(tmp_path):
    """The test above can fail: with one group the losses differ."""
    launch(plan(None), gloo_workers.contrast, tmp_path, 2, 1)
    two = torch.load(tmp_path / "1_0.pt", weights_only=True)["losses"]
    launch(plan(None), gloo_workers.contrast, tmp_path, 1, 1)
    one = torch.load(tmp_path / "1_0.pt", weights_only=True)["losses"]
    assert abs(one - two).item() > 1e-3


def test_group_batchnorm_keeps_state_and_settings():
    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.01)
    with torch.no_grad():
        for value in plain.state_dict().values():
            value.copy_(torch.rand(value.shape) + 1)
    images = torch.randn(6, 3, 4, 4)
    grouped = group_batchnorm(torch.nn.Sequential(copy.deepcopy(plain)), groups=1)
    for mode in (True, False):
        assert torch.equal(grouped.train(mode)(images), plain.train(mode)(images))
    assert torch.equal(grouped[0].running_var, plain.running_var)


def test_grouped_batchnorm_of_timm_keeps_its_activation():
    """EfficientNet's BatchNormAct2d, with the weights, statistics and momentum of a file."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = timm.layers.BatchNormAct2d(3, eps=1e-3, momentum=0.01, act_layer=nn.SiLU)
    with torch.no_grad():
        for value in plain.state_dict().values():
            value.copy_(torch.rand(value.shape) + 1)
    images = torch.randn(6, 3, 4, 4)
    grouped = group_batchnorm(nn.Sequential(copy.deepcopy(plain)), groups=2)
    assert torch.equal(grouped.eval()(images), plain.eval()(images))
    expected = torch.cat([plain.train()(part) for part in images.chunk(2)])
    torch.testing.assert_close(grouped.train()(images), expected)
    assert (grouped[0].eps, grouped[0].momentum) == (1e-3, 0.01)
    assert list(grouped.state_dict()) == [f"0.{name}" for name in plain.state_dict()]


def test_batchnorm_of_vectors_is_grouped():
    torch.manual_seed(0)
    vectors, plain = torch.randn(6, 5), nn.BatchNorm1d(5)
    grouped = group_batchnorm(nn.Sequential(nn.BatchNorm1d(5)), groups=3)
    expected = torch.cat([plain(part) for part in vectors.chunk(3)])
    torch.testing.assert_close(grouped(vectors), expected)
    torch.testing.assert_close(grouped.eval()(vectors).shape, expected.shape)
