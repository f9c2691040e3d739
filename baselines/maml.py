"""Model-agnostic meta-learning (Finn et al. 2017, arXiv 1703.03400), on the base classes.

python -m baselines.maml DATA --model-path OUT --k-shot 5
python test.py DATA --resume OUT --k-shot 5 --seed 0

The weights θ are trained so that a few gradient steps on a support set, the inner loop, suffice to
classify its query set.

First order by default, which Sun et al. very likely used and Finn et al. report as equally good;
--order 2 differentiates through the inner loop, for several times the memory. Each task's gradient
is computed by itself, so that memory does not grow with --meta-batch.

No transduction: queries of a task are normalised by the statistics of its support set. In training,
where it makes no difference to a score, they are normalised by their own batch's. All weights are
adapted, BatchNorm's too.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import InputError
from moco.config import Stage, register
from models import LinearClassifier, build_encoder
from trainer import cli
from trainer.nan_guard import not_finite
from trainer.settings import setting

from .common import Start, start
from .episodes import (
    Episodic,
    EpisodicModel,
    Groups,
    class_groups,
    labels_of,
    query_size,
    train_episodes,
)

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Adaptation(Episodic):
    """inner loop"""

    n_way: int = setting(
        None, "classes of an episode and of the tasks", low=2, metavar="N", fixed=True,
        auto="the rare classes",
    )  # fmt: skip
    inner_lr: float = setting(
        None, "learning rate of the inner loop, for the mean loss", low=0, metavar="A", fixed=True,
        auto="0.05 for 4-conv-blocks, else 0.01",
    )  # fmt: skip
    inner_steps: int = setting(
        5, "gradient steps on a support set in training", low=1, metavar="S", fixed=True
    )
    test_steps: int = setting(
        10, "gradient steps on a task's support set", low=0, metavar="S", fixed=True
    )
    order: int = setting(
        1, "1: the inner loop's gradients are constants; 2: differentiate through them", low=1,
        high=2, metavar="{1,2}", fixed=True,
    )  # fmt: skip
    zero_head: bool = setting(
        False, "start the head at zero in each episode instead of learning its start; implied if "
        "tasks have more classes than there are to train on", fixed=True,
    )  # fmt: skip

    @classmethod
    def defaults_for(cls, arch: str) -> dict[str, Any]:
        inner_lr = 0.05 if arch.startswith("conv4") else 0.01
        return {**super().defaults_for(arch), "inner_lr": inner_lr}


@dataclass(frozen=True, kw_only=True)
class MAMLSettings(Adaptation):
    """baselines/maml.py"""

    description = "MAML, meta-trained on the base classes."

    k_shot: int = setting(
        5, "support images per class of an episode, best the number that tasks have", low=1,
        metavar="K", fixed=True,
    )  # fmt: skip


def inner_loop(
    theta: Weights, loss: Callable[[Weights], Tensor], steps: int, lr: float, order: int = 1
) -> Weights:
    """Return the weights after `steps` gradient steps on `loss`, eq. (1).

    They depend on `theta` through the gradients as well if `order` is 2, else only directly.
    """
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(theta), list(theta.values()), create_graph=order == 2)
        theta = {name: w - lr * g for (name, w), g in zip(theta.items(), gradients)}
    return theta


class MAML(EpisodicModel):
    """f_θ: a backbone and a linear head."""

    def __init__(
        self, arch: str, image_size: int, n_way: int, inner_lr: float, inner_steps: int,
        test_steps: int, order: int = 1, zero_head: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.inner_lr, self.order, self.zero_head = inner_lr, order, zero_head
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.query_encoder = build_encoder(arch, None, image_size=image_size)
        self.classifier = LinearClassifier(self.query_encoder.out_features, n_way)
        if zero_head:
            for weight in self.classifier.parameters():
                nn.init.zeros_(weight).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, B×3×S×S, to logits, B×N."""
        return self.classifier(self.query_encoder(images))

    def logits(self, theta: Weights, images: Tensor) -> Tensor:
        """Return the logits with the weights `theta`, leaving the model's running statistics as
        they are."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return functional_call(self, {**theta, **buffers}, (images,))

    def start(self, n_way: int) -> Weights:
        """Return θ, with a head of zeros for `n_way` classes if so set."""
        theta = dict(self.named_parameters())
        if self.zero_head:
            for name in ("classifier.linear.weight", "classifier.linear.bias"):
                zeros = theta[name].new_zeros(n_way, *theta[name].shape[1:])
                theta[name] = zeros.requires_grad_()
        return theta

    def episode_loss(self, support: Tensor, query: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
        """Return the query set's loss after the inner loop on the support set, and accuracy."""
        labels, truth = labels_of(support, n_way), labels_of(query, n_way)
        adapted = inner_loop(
            self.start(n_way),
            lambda theta: F.cross_entropy(self.logits(theta, support), labels),
            self.inner_steps, self.inner_lr, self.order,
        )  # fmt: skip
        logits = self.logits(adapted, query)
        return F.cross_entropy(logits, truth), (logits.argmax(dim=1) == truth).float().mean()

    def embed(self, images: Tensor) -> Tensor:
        """Return the images: everything else depends on the task."""
        return images

    def adapt(self, embeddings: Tensor, labels: Tensor) -> nn.Module:
        """Return a copy adapted to N·K support images, labelled 0…N−1, which maps images to
        probabilities.

        BatchNorm's running statistics are the support set's. Raises InputError for another number
        of classes than the head's, and for non-finite weights.
        """
        n_way, of = int(labels.max()) + 1, self.classifier.linear.out_features
        if n_way != of and not self.zero_head:
            raise InputError(
                f"the task has {n_way} classes, but the model was trained for {of}; train with "
                f"--n-way {n_way}, or with --zero-head for any number"
            )
        model = copy.deepcopy(self).train()
        with torch.enable_grad():
            theta = {name: w.detach().requires_grad_() for name, w in self.start(n_way).items()}
            theta = inner_loop(
                theta, lambda theta: F.cross_entropy(model.logits(theta, embeddings), labels),
                self.test_steps, self.inner_lr,
            )  # fmt: skip
        if names := not_finite(theta):
            raise InputError(f"NaN or Inf in weights adapted to the task: {names[0]}")
        model.classifier = LinearClassifier(model.query_encoder.out_features, n_way).to(
            labels.device
        )
        model.load_state_dict(theta, strict=False)
        keep_statistics(model, embeddings)
        return nn.Sequential(model, nn.Softmax(dim=1)).eval().requires_grad_(False)


@torch.no_grad()
def keep_statistics(model: nn.Module, images: Tensor) -> None:
    """Set each BatchNorm's running statistics to mean and variance of `images` in this layer, and
    `model` to evaluation mode."""

    def measure(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x, dims = inputs[0].float(), [0, *range(2, inputs[0].ndim)]
        layer.running_mean.copy_(x.mean(dims))
        layer.running_var.copy_(x.var(dims, unbiased=False))  # as in training

    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    model.eval()(images)
    for hook in hooks:
        hook.remove()


def outer_loss(loss: Tensor) -> dict[str, Tensor]:
    """Return what Algorithm 2 minimises, the loss of a task's query set, and values to log."""
    return {"loss": loss}


def meta_step(
    model: MAML,
    episodes: Iterable[tuple[Tensor, Tensor]],
    n_way: int,
    outer_loss: Callable[[Tensor], dict[str, Tensor]] = outer_loss,
) -> dict[str, Tensor]:
    """Add the gradient of the episodes' mean outer loss to that of the weights, Algorithm 2.

    Calls backward for each episode by itself. Returns the means of `outer_loss`'s values and of the
    accuracy, without gradient.
    """
    episodes = list(episodes)
    totals: dict[str, Tensor] = {}
    for support, query in episodes:
        loss, accuracy = model.episode_loss(support, query, n_way)
        values = {**outer_loss(loss), "accuracy": accuracy}
        (values["loss"] / len(episodes)).backward()
        for name, value in values.items():
            totals[name] = totals.get(name, 0) + value.detach() / len(episodes)
    return totals


def train_maml(
    start: Start,
    partitions: Sequence[Groups] | None = None,
    query: int = 0,
    outer_loss: Callable[[Tensor], dict[str, Tensor]] = outer_loss,
    **options: Any,
) -> None:
    """Meta-train a MAML on episodes of `query` query images per class from `partitions`, by default
    the base classes, with an outer loss, see `meta_step`. `options`: see `train_episodes`.

    Raises InputError if there are too few classes or images, and like `train_episodes`.
    """
    settings, base = start.settings, start.data.base
    if settings.knn_every:
        raise InputError("--knn-every: BatchNorm has no statistics before MAML adapts to a task")
    zero_head = settings.zero_head
    if partitions is None:
        partitions = [class_groups(base)]
        query = query_size(partitions[0], settings.k_shot, settings.query)
        zero_head |= settings.n_way > len(base.classes)
    start = start.replaced(zero_head=zero_head)
    most = min(map(len, partitions))
    n_way = min(settings.n_way, most) if zero_head else settings.n_way
    if not 2 <= n_way <= most:
        raise InputError(f"--n-way {n_way}: there are {most} classes to train on")

    def step(model: MAML, episodes: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return meta_step(model, episodes, n_way, outer_loss)

    train_episodes(start, partitions, n_way, query, step, **options)


def start_maml(stage: str, argv: list[str] | None) -> Start:
    """Return what a command starts from, with --n-way by default the number of rare classes."""
    run = start(stage, argv)
    return run.replaced(n_way=run.settings.n_way or len(run.data.rare.classes))


register(Stage("maml", "MAML, baselines/maml.py", MAMLSettings, adapts=MAML))


def main(argv: list[str] | None = None) -> None:
    train_maml(start_maml("maml", argv))


if __name__ == "__main__":
    cli.run(main)
