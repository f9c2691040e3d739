"""The method as published code computes it: what the fast path is compared with.

As in MoCo's code: 32-bit numbers (as torch has them by itself), channels first; the key encoder
follows one tensor at a time, and so does SGD. As in few-shot learning's ResNet-12: DropBlock
indexes each block; ReLU before pooling. As in the authors' own: stage (d) encodes the query view
once for each loss; evaluation takes one image at a time. Views by PIL in worker processes, from
files that are decoded in every epoch, are the scripts' `--views pil --no-cache`. It computes the
same losses: tests/benchmarks/test_plain.py.
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
    """As torch is when it starts, and as published code sets it: convolutions looked for once."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


class IndexedDropBlock(DropBlock):
    """DropBlock that zeroes the mask at every place of every block, by its index."""

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
        places = (corners[:, None] + offsets).flatten(0, 1)
        mask = torch.ones_like(x)
        mask[tuple(places.T)] = 0
        return x * mask * (mask.numel() / mask.sum())


class PlainResidualBlock(ResidualBlock):
    """In its paper's order: ReLU on the whole map, then pooling."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.shortcut(x)
        return self.drop(self.pool(self.relu(out)))


def plain_encoder(arch: str, embedding_dim: int = 128) -> Encoder:
    """`build_encoder`'s, with the same weights from the same random numbers, computed plainly."""
    encoder = build_encoder(arch, embedding_dim)
    for module in list(encoder.modules()):
        if isinstance(module, ResidualBlock):
            module.__class__ = PlainResidualBlock
        elif isinstance(module, DropBlock):
            module.__class__ = IndexedDropBlock
        elif isinstance(module, Conv4):
            for number, (conv, norm, pool, relu) in enumerate(module.blocks):
                module.blocks[number] = nn.Sequential(conv, norm, relu, pool)
    return encoder


class PlainMoCo(MoCo):
    """Stage (a)."""

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        m = self.encoder_momentum
        for theta_k, theta_q in zip(self.key_encoder.parameters(), self.query_encoder.parameters()):
            theta_k.data = theta_k.data * m + theta_q.data * (1 - m)


class PlainStudent(PlainMoCo, Student):
    """Stage (d)."""

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        contrastive, _ = MoCo.forward(self, im_q, im_k)
        embeddings = self.query_encoder(im_q)
        return contrastive, embeddings, self.classifier(embeddings)


def plain_sgd(model: nn.Module, lr: float, momentum: float, wd: float) -> torch.optim.SGD:
    """SGD of one tensor after another."""
    trained = [theta for theta in model.parameters() if theta.requires_grad]
    return torch.optim.SGD(trained, lr, momentum, weight_decay=wd, foreach=False, fused=False)


@torch.no_grad()
def plain_encode(
    encoder: nn.Module, images: ImageSet, image_size: int, workers: int, device: torch.device
) -> Tensor:
    """The embeddings of `images`, N×D, one at a time from their files."""
    encoder.eval()
    loader = DataLoader(TransformedImages(images, plain_view(image_size)), num_workers=workers)
    return torch.cat([encoder(image.to(device)).cpu() for image in loader])
