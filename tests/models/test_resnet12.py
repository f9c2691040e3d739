"""ResNet-12 and DropBlock."""

import pytest
import torch
from torch import nn

from models import build_encoder
from models.resnet12 import DropBlock, drop_block


def test_parameters():
    encoder = build_encoder("resnet12")
    assert sum(p.numel() for p in encoder.parameters()) == 12_506_368


def index_by_index(x, gamma, block):
    """DropBlock as in its paper, with loops over the seeds."""
    n, c, height, width = x.shape
    keep = torch.ones_like(x)
    starts_y, starts_x = height - block[0] + 1, width - block[1] + 1
    for i in range(n):
        for j in range(c):
            for y in range(starts_y):
                for z in range(starts_x):
                    if torch.rand(()) < gamma:
                        keep[i, j, y : y + block[0], z : z + block[1]] = 0
    return x * keep * keep.numel() / keep.sum()


@pytest.mark.parametrize("size", [(9, 9), (5, 7), (3, 3), (2, 2)])
def test_mask_statistics_against_index_by_index(size):
    """The same number, positions and correlation of dropped values as in a naive loop."""
    torch.manual_seed(0)
    x = torch.ones(60, 12, *size)
    rate, block = 0.2, (min(5, size[0]), min(5, size[1]))
    starts = (size[0] - block[0] + 1) * (size[1] - block[1] + 1)
    gamma = rate * size[0] * size[1] / (block[0] * block[1] * starts)
    fast, slow = drop_block(x, rate), index_by_index(x, gamma, block)
    for found in (fast, slow):
        assert found.mean().item() == pytest.approx(1, abs=1e-4)
    gone_fast, gone_slow = fast == 0, slow == 0
    assert gone_fast.float().mean().item() == pytest.approx(
        gone_slow.float().mean().item(), abs=0.03
    )
    spread = (gone_fast.float().mean((0, 1)) - gone_slow.float().mean((0, 1))).abs().max()
    assert spread < 0.08  # at each position of the map

    def together(gone):  # how often the right neighbour of a dropped value is dropped too
        return (gone[..., 1:] & gone[..., :-1]).sum() / gone[..., :-1].sum()

    assert together(gone_fast).item() == pytest.approx(together(gone_slow).item(), abs=0.04)


def test_dropped_values_form_whole_blocks():
    torch.manual_seed(1)
    gone = (drop_block(torch.ones(8, 4, 9, 9), 0.05) == 0).float()
    blocks = torch.nn.functional.avg_pool2d(gone, 5, stride=1) == 1  # fully dropped 5×5 squares
    painted = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(blocks.float(), (4, 4, 4, 4)), 5, stride=1
    )
    assert gone.sum() > 0 and torch.equal(painted, gone)


def test_drop_rate_is_annealed_and_only_in_training():
    torch.manual_seed(0)
    layer, x = DropBlock(), torch.ones(16, 8, 9, 9)
    layer(x)
    assert layer.steps == 1
    start = (layer(x) == 0).float().mean()
    layer.steps.fill_(20_000)
    half = (layer(x) == 0).float().mean()
    layer.steps.fill_(400_000)
    end = (layer(x) == 0).float().mean()
    assert start < 0.01 < 0.03 < half < 0.07 < end < 0.12
    layer.eval()
    assert torch.equal(layer(x), x) and layer.steps == 400_001


def test_dropping_a_whole_map_stays_finite():
    assert drop_block(torch.ones(1, 1, 2, 2), 1.0).isfinite().all()


def test_dropblock_counter_is_saved():
    steps = [name for name in build_encoder("resnet12").state_dict() if name.endswith("steps")]
    assert len(steps) == 2


def test_dropout_then_dropblock():
    blocks = build_encoder("resnet12").backbone.blocks
    assert [type(block.drop) for block in blocks] == [nn.Dropout] * 2 + [DropBlock] * 2
    assert blocks[0].drop.p == 0.1 and blocks[0].relu.negative_slope == 0.1
