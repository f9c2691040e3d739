"""Momentum contrast (He et al. 2020): encoder pair, queue of keys, and shuffled BatchNorm."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import LinearClassifier
from trainer.distributed import all_gather, broadcast, my_share

from .losses import contrastive_logits


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that, in training, normalises `groups` equal parts of the batch separately.

    One process then behaves like `groups` GPUs, each with a part of the batch. Shuffled BatchNorm
    needs this: in a single group a query and its key share their statistics, which leak the
    positive. The running statistics follow the mean over the groups. With 0 groups it normalises by
    the running statistics and leaves them as they are, as pretrained weights expect.
    """

    def __init__(self, num_features: int, groups: int):
        super().__init__(num_features)
        self.groups = groups

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept N×C, too: what a BatchNorm1d normalises."""

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 0:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if not self.training or self.groups == 1:
            return super().forward(x)
        parts = []
        for number, part in enumerate(x.chunk(self.groups), start=1):
            # Sequential updates; this momentum gives all groups equal weight.
            momentum = self.momentum / (self.groups - (self.groups - number) * self.momentum)
            parts.append(
                F.batch_norm(
                    part, self.running_mean, self.running_var, self.weight, self.bias,
                    training=True, momentum=momentum, eps=self.eps,
                )
            )  # fmt: skip
        self.num_batches_tracked.add_(1)
        return torch.cat(parts)


class GroupedBatchNormAct2d(GroupedBatchNorm2d):
    """The same, and what timm's BatchNormAct2d does after it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def group_batchnorm(module: nn.Module, groups: int) -> nn.Module:
    """Replace each BatchNorm in `module` by a GroupedBatchNorm2d with its state and settings."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            kind = GroupedBatchNormAct2d if hasattr(child, "act") else GroupedBatchNorm2d
            grouped = kind(child.num_features, groups)
            if kind is GroupedBatchNormAct2d:
                grouped.drop, grouped.act = child.drop, child.act
            grouped.eps, grouped.momentum = child.eps, child.momentum
            grouped.load_state_dict(child.state_dict())
            setattr(module, name, grouped)
        else:
            group_batchnorm(child, groups)
    return module


class MoCo(nn.Module):
    """Query encoder f_q, key encoder f_k and the queue of keys: stage (a).

    `make_encoder` returns an encoder from images to embeddings (N×`embedding_dim`) and is called
    twice. `batchnorm_groups` is per process.
    """

    queue: Tensor
    queue_position: Tensor

    def __init__(
        self,
        make_encoder: Callable[[], nn.Module],
        embedding_dim: int = 128,
        queue_size: int = 1280,
        encoder_momentum: float = 0.999,
        temperature: float = 0.07,
        batchnorm_groups: int = 1,
    ):
        super().__init__()
        self.encoder_momentum = encoder_momentum
        self.temperature = temperature
        self.query_encoder = group_batchnorm(make_encoder(), batchnorm_groups)
        self.key_encoder = group_batchnorm(make_encoder(), batchnorm_groups)
        self.key_encoder.load_state_dict(self.query_encoder.state_dict())
        self.key_encoder.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, embedding_dim), dim=1))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of eq. (1), B×(1+L), and the query embeddings f_q(x_q), B×D.

        `im_q`, `im_k`: two views of this rank's B images, B×3×S×S. The embeddings are not
        normalised. Updates f_k and the queue.
        """
        embeddings = self.query_encoder(im_q)  # B×D
        q = F.normalize(embeddings, dim=1)
        with torch.no_grad():
            self.update_key_encoder()
            keys = self.encode_keys(im_k)  # of all ranks
        # A copy of the queue: enqueue changes it before the backward pass.
        logits = contrastive_logits(q, my_share(keys), self.queue.clone(), self.temperature)
        self.enqueue(keys)
        return logits, embeddings

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Momentum update of the key encoder: θ_k ← m θ_k + (1−m) θ_q."""
        theta_k, theta_q = (list(f.parameters()) for f in (self.key_encoder, self.query_encoder))
        torch._foreach_lerp_(theta_k, theta_q, 1 - self.encoder_momentum)

    @torch.no_grad()
    def encode_keys(self, im_k: Tensor) -> Tensor:
        """Return the normalised keys of all ranks' images, in rank order, by shuffled BatchNorm.

        Each rank encodes a random share of all images, so that a key and its query have different
        BatchNorm statistics. im_k: B×3×S×S; returns (ranks·B)×D.
        """
        images = all_gather(im_k)
        order = broadcast(torch.randperm(len(images), device=images.device))
        shuffled_keys = F.normalize(self.key_encoder(images[my_share(order)]), dim=1)
        return all_gather(shuffled_keys)[order.argsort()]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys in the queue by the batch's; wraps at the end."""
        offsets = torch.arange(len(keys), device=keys.device)
        self.queue[(self.queue_position + offsets) % len(self.queue)] = keys
        self.queue_position.copy_((self.queue_position + len(keys)) % len(self.queue))


class Student(MoCo):
    """Encoder pair f_q′, f_k′, a new queue, and the classifier f_c′: stage (d)."""

    class_temperatures: Tensor

    def __init__(
        self, make_encoder: Callable[[], nn.Module], n_way: int, embedding_dim: int = 128, **moco
    ):
        super().__init__(make_encoder, embedding_dim, **moco)
        self.classifier = LinearClassifier(embedding_dim, n_way)
        self.register_buffer("class_temperatures", torch.ones(n_way))  # τ_n, for the loss

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also return the logits of F′ = f_c′(f_q′) on the query view, B×N, from the same pass."""
        contrastive, embeddings = super().forward(im_q, im_k)
        return contrastive, embeddings, self.classifier(embeddings)


@torch.no_grad()
def contrast_accuracy(logits: Tensor) -> dict[str, Tensor]:
    """Return top-1 and top-5 accuracy of the positive (column 0). logits: B×(1+L)."""
    ahead = (logits[:, 1:] >= logits[:, :1]).sum(dim=1)
    return {"acc1": (ahead < 1).float().mean(), "acc5": (ahead < 5).float().mean()}
