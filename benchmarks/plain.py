"""The method as in published code, the reference for the fast path.

As in MoCo's code: float32, channels first, and one tensor at a time in the momentum update and in
SGD. As in few-shot learning's ResNet-12: DropBlock by indexing each block, ReLU before pooling. As
in the authors' code: stage (d) encodes the query view once per loss, evaluation encodes one image
at a time. For views by PIL in worker processes from JPEG files, use `--views pil --no-cache`. The
losses are the same (tests/benchmarks/test_plain.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.images import ImageSet, TransformedImages
from moco.augment import plain_view
from moco.builder import MoCo, Student
from models import Encoder, build_encoder
from models.conv4 import Conv4
from models.resnet12 import ANNEALING_STEPS, BLOCK_SIZE, DROP_RATE, DropBlock, ResidualBlock


def torch_defaults() -> None:
    """Set the defaults of torch, and cudnn.benchmark as in published code."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


class IndexedDropBlock(DropBlock):
    """DropBlock that zeroes each position of each block by its index."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.steps += 1
        rate = DROP_RATE * min(self.steps.item() / ANNEALING_STEPS, 1)
        height, width = x.shape[-2:]
        block = (min(BLOCK_SIZE, height), min(BLOCK_SIZE, width))
        starts = (height - block[0] + 1, width - block[1] + 1)
        gamma = rate * height * width / (block[0] * block[1] * starts[0] * starts[1])
        seeds = torch.rand(*x.shape[:2], *starts, device=x.device) < gamma
        corners = seeds.nonzero()  # M×4: image, channel, row, column
        offsets = torch.cartesian_prod(torch.arange(block[0]), torch.arange(block[1]))
        offsets = F.pad(offsets, (2, 0)).to(x.device)  # b²×4
        positions = (corners[:, None] + offsets).flatten(0, 1)
        mask = torch.ones_like(x)
        mask[tuple(positions.T)] = 0
        return x * mask * (mask.numel() / mask.sum())


class PlainResidualBlock(ResidualBlock):
    """Residual block in the order of its paper: ReLU on the whole map, then pooling."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.shortcut(x)
        return self.drop(self.pool(self.relu(out)))


def plain_encoder(arch: str, embedding_dim: int = 128) -> Encoder:
    """Return the encoder of `build_encoder`, with the same initial weights, in plain modules."""
    encoder = build_encoder(arch, embedding_dim)
    for module in list(encoder.modules()):
        if isinstance(module, ResidualBlock):
            module.__class__ = PlainResidualBlock
        elif isinstance(module, DropBlock):
            module.__class__ = IndexedDropBlock
        elif isinstance(module, Conv4):
            for i, (conv, norm, pool, relu) in enumerate(module.blocks):
                module.blocks[i] = nn.Sequential(conv, norm, relu, pool)
    return encoder


class PlainMoCo(MoCo):
    """MoCo of stage (a), updated one tensor at a time."""

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        m = self.encoder_momentum
        for theta_k, theta_q in zip(self.key_encoder.parameters(), self.query_encoder.parameters()):
            theta_k.data = theta_k.data * m + theta_q.data * (1 - m)


class PlainStudent(PlainMoCo, Student):
    """Student of stage (d), encoding the query view twice."""

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        contrastive, _ = MoCo.forward(self, im_q, im_k)
        embeddings = self.query_encoder(im_q)
        return contrastive, embeddings, self.classifier(embeddings)


def plain_sgd(model: nn.Module, lr: float, momentum: float, wd: float) -> torch.optim.SGD:
    """Return SGD that updates one tensor at a time."""
    trainable = [theta for theta in model.parameters() if theta.requires_grad]
    return torch.optim.SGD(trainable, lr, momentum, weight_decay=wd, foreach=False, fused=False)


@torch.no_grad()
def plain_encode(
    encoder: nn.Module, images: ImageSet, image_size: int, workers: int, device: torch.device
) -> Tensor:
    """Return the embeddings of `images`, N×D, read and encoded one at a time."""
    encoder.eval()
    loader = DataLoader(TransformedImages(images, plain_view(image_size)), num_workers=workers)
    return torch.cat([encoder(image.to(device)).cpu() for image in loader])
