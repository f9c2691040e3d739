"""Prototypical and Relation Networks against loops and values worked out by hand."""

import math

import pytest
import torch

from baselines.protonet import ProtoNet, prototype_logits, prototypes
from baselines.relationnet import RelationNet, class_maps, pairs, relation_loss
from common.errors import InputError

SUPPORT = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 6.0]])
LABELS = torch.tensor([0, 0, 1, 1])


def test_prototypes_and_probabilities():
    centres = prototypes(SUPPORT, LABELS)
    assert centres.tolist() == [[1, 0], [0, 5]]
    p = prototype_logits(torch.tensor([[1.0, 2.0]]), centres).softmax(dim=1)
    assert p[0, 0].item() == pytest.approx(0.997527, abs=1e-6)  # unsquared: 0.761746


def test_protonet_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    support, queries = (
        torch.randn(6, 5, generator=generator),
        torch.randn(4, 5, generator=generator),
    )
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    p = prototype_logits(queries, prototypes(support, labels)).softmax(dim=1)
    for i, q in enumerate(queries.tolist()):
        scores = []
        for n in range(3):
            members = [row for row, label in zip(support.tolist(), labels.tolist()) if label == n]
            centre = [sum(column) / len(members) for column in zip(*members)]
            scores.append(math.exp(-sum((a - b) ** 2 for a, b in zip(q, centre))))
        for n in range(3):
            assert p[i, n].item() == pytest.approx(scores[n] / sum(scores), rel=1e-4, abs=1e-7)


def test_protonet_is_a_linear_classifier():
    """W = 2c, b = −‖c‖²; with one shot it is the nearest neighbour."""
    generator = torch.Generator().manual_seed(1)
    support, queries = (
        torch.randn(4, 8, generator=generator),
        torch.randn(9, 8, generator=generator),
    )
    centres = prototypes(support, torch.tensor([1, 1, 0, 0]))
    linear = queries @ (2 * centres).T - centres.square().sum(dim=1)
    found = prototype_logits(queries, centres).softmax(dim=1)
    assert torch.allclose(found, linear.softmax(dim=1), atol=1e-6)
    one_shot = prototype_logits(queries, prototypes(support, torch.arange(4))).argmax(dim=1)
    assert torch.equal(one_shot, torch.cdist(queries, support).argmin(dim=1))


def test_protonet_gradient_reaches_support_and_query():
    torch.manual_seed(0)
    model = ProtoNet("conv4", 32).train()
    support, query = (torch.rand(n, 3, 32, 32, requires_grad=True) for n in (4, 6))
    loss, accuracy = model.episode_loss(support, query, 2)
    loss.backward()
    assert all(x.grad.abs().sum(dim=(1, 2, 3)).gt(0).all() for x in (support, query))
    assert 0 <= accuracy <= 1


def test_pairs_hold_the_class_sum_and_the_query():
    """Constant maps: pair (i, j) has the sum of class j's support maps, then query i."""
    maps = torch.tensor([1.0, 2.0, 10.0, 20.0])[:, None, None, None].expand(4, 2, 3, 3)
    classes = class_maps(maps, LABELS)
    assert classes.shape == (2, 2, 3, 3) and classes[:, 0, 0, 0].tolist() == [3, 30]
    queries = torch.tensor([5.0, 6.0, 7.0])[:, None, None, None].expand(3, 2, 3, 3)
    found = pairs(queries, classes).view(3, 2, 4, 3, 3)
    for i in range(3):
        for j in range(2):
            assert torch.equal(found[i, j, :2], classes[j]) and torch.equal(
                found[i, j, 2:], queries[i]
            )


def test_copies_of_an_image_act_as_multiples_of_its_map():
    maps = torch.rand(2, 4, 3, 3)
    labels = torch.tensor([0, 1]).repeat_interleave(3)
    assert torch.allclose(class_maps(maps.repeat_interleave(3, dim=0), labels), 3 * maps)


def test_relation_loss_against_a_loop():
    relations, labels = torch.rand(5, 4), torch.tensor([0, 3, 2, 2, 1])
    total = sum(
        (relations[i, n].item() - (labels[i].item() == n)) ** 2 for i in range(5) for n in range(4)
    )
    assert relation_loss(relations, labels).item() == pytest.approx(total / 20, rel=1e-5)
    trivial = relation_loss(torch.full((5, 4), 0.25), labels)  # the best without looking
    assert trivial.item() == pytest.approx(0.1875)


@pytest.mark.parametrize(
    "arch, size",
    [("conv4", 32), ("conv4", 84), ("conv4_released", 84), ("conv4", 50), ("resnet12", 37),
     ("se_resnet50", 33)],
)  # fmt: skip
def test_maps_of_any_size(arch, size):
    model = RelationNet(arch, size, k_shot=1).eval()
    with torch.no_grad():
        classify = model.adapt(model.embed(torch.rand(2, 3, size, size)), torch.arange(2))
        p = classify(model.embed(torch.rand(3, 3, size, size)))
    assert p.shape == (3, 2) and torch.allclose(p.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    "arch",
    ["conv4", "conv4_released", "resnet12", "se_resnet50", "torchvision/resnet18",
     "torchvision/densenet121", "torchvision/googlenet"],
)  # fmt: skip
def test_the_mean_of_the_feature_map_is_the_embedding(arch):
    model = ProtoNet(arch, 40).eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        maps, embeddings = model.query_encoder.feature_map(images), model.embed(images)
    scale = embeddings.abs().max()
    assert maps.ndim == 4 and torch.allclose(maps.mean(dim=(2, 3)) / scale, embeddings / scale)


@pytest.mark.parametrize("arch", ["torchvision/vit_b_32", "torchvision/mobilenet_v3_small"])
def test_networks_without_a_map(arch):
    with pytest.raises(InputError, match="has no map of its features"):
        RelationNet(arch, 32, k_shot=1)


def test_adapted_relations_are_shares_of_their_sum():
    torch.manual_seed(0)
    model = RelationNet("conv4", 32, k_shot=2).eval()
    maps, queries = torch.rand(4, 64, 2, 2), torch.rand(3, 64, 2, 2)
    p = model.adapt(maps, LABELS)(queries)
    r = model.relation_logits(queries, class_maps(maps, LABELS)).sigmoid()
    assert torch.allclose(p, r / r.sum(dim=1, keepdim=True), atol=1e-6)


def test_the_relation_module_starts_as_the_authors_does():
    """Convolutions: N(0, 2 / (9·64)), biases 0; linear layers: N(0, 0.01²), biases 1."""
    torch.manual_seed(0)
    relation = RelationNet("conv4", 32, k_shot=1).relation
    for layer in relation.modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
            assert not layer.bias.any()
    assert relation[4].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (relation[4].bias == 1).all() and relation[6].bias.item() == 1
    r = relation(torch.randn(5, 128, 2, 2)).sigmoid()
    assert r.std() < 0.02  # the plateau at a constant: training starts there


@pytest.mark.parametrize("numbers, words", [([1, 1], "--k-shot 1:"), ([1, 3], "--k-shot 1, 3:")])
def test_sums_need_the_number_of_shots_of_the_training(numbers, words):
    """In each class, also of a support set that the user has chosen: 2 on average is not enough."""
    model = RelationNet("conv4", 32, k_shot=2).eval()
    labels = torch.arange(2).repeat_interleave(torch.tensor(numbers))
    with pytest.raises(InputError, match=f"{words} .*trained with --k-shot 2"):
        model.adapt(torch.rand(len(labels), 64, 2, 2), labels)
