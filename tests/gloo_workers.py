"""What the tests of several processes run in these; a spawned one imports it."""

import functools
from pathlib import Path

import torch

from common.errors import InputError
from trainer import distributed, launch_plan


def plan(nproc, **how):
    """`nproc` processes on the CPU, or this one alone, unless `how` says otherwise."""
    values = dict(
        device="cpu", gpu=None, multiprocessing_distributed=nproc is not None, nproc=nproc,
        world_size=1, rank=0, dist_url=None, dist_backend="auto", dist_timeout=60,
    )  # fmt: skip
    return launch_plan.plan(**{**values, **how})


def contrast(device, folder: Path, groups: int, steps: int) -> None:
    """Train MoCo for some steps on this process's share of known batches; write what came out."""
    from moco.builder import MoCo  # takes two seconds, which the others need not wait for
    from moco.losses import contrastive_loss
    from models import build_encoder

    torch.manual_seed(0)
    encoder = functools.partial(build_encoder, "conv4", 16)
    model = MoCo(encoder, 16, queue_size=24, encoder_momentum=0.5, batchnorm_groups=groups)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    torch.manual_seed(7 + distributed.rank())  # rank 0's shuffles count
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(steps, 2, 8, 3, 32, 32, generator=generator)
    images = images * torch.rand(steps, 2, 8, 3, 1, 1, generator=generator)
    losses = []
    for im_q, im_k in images:
        logits, _ = model(distributed.my_share(im_q), distributed.my_share(im_k))
        loss = contrastive_loss(logits)
        optimizer.zero_grad()
        loss.backward()
        for p in model.query_encoder.parameters():
            p.grad = distributed.all_mean(p.grad)
        optimizer.step()
        losses.append(distributed.all_mean(loss.detach()))
    distributed.average_running_statistics(model)
    contents = {"losses": torch.stack(losses), "state": model.state_dict()}
    torch.save(contents, folder / f"{distributed.world_size()}_{distributed.rank()}.pt")


def collectives(device, folder: Path) -> None:
    """Every collective, on values that tell the ranks apart."""
    rank = distributed.rank()
    x = torch.arange(2.0) + 10 * rank
    result = {
        "gathered": distributed.all_gather(x),
        "broadcast": distributed.broadcast(x.clone()),
        "mean": distributed.all_mean(x),
        "share": distributed.my_share(torch.arange(4)),
        "x": x,
    }
    torch.save(result, folder / f"{rank}.pt")


def fail_alone(device, folder: Path, length: int) -> None:
    """Process 1 has a reason to end; process 0, which waits for it, has none of its own."""
    if distributed.rank() == 1:
        raise InputError("this is wrong" + "!" * length)
    distributed.agreed(0)


def fail(device, folder: Path) -> None:
    raise InputError("this is wrong")
