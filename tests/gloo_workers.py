"""Workers of distributed tests, importable by spawned processes."""

import functools
from pathlib import Path

import torch

from common.errors import InputError
from common.failures import tracebacks_to
from trainer import distributed, launch_plan
from trainer.config import Distributed


def plan(nproc, **flags):
    """Return a plan of `nproc` processes on the CPU, or of this one if None, with these flags."""
    values = dict(
        device="cpu", gpu=None, multiprocessing_distributed=nproc is not None, nproc=nproc,
        world_size=1, rank=0, dist_url=None, dist_backend="auto", dist_timeout=60,
    )  # fmt: skip
    return launch_plan.plan_of(Distributed(**{**values, **flags}))


def contrast(device, folder: Path, groups: int, steps: int) -> None:
    """Train MoCo for some steps on this rank's share of known batches; save losses and state."""
    from moco.builder import MoCo  # a slow import that other workers do not need
    from moco.losses import contrastive_loss
    from models import build_encoder

    torch.manual_seed(0)
    encoder = functools.partial(build_encoder, "conv4", 16)
    model = MoCo(encoder, 16, queue_size=24, encoder_momentum=0.5, batchnorm_groups=groups)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    torch.manual_seed(7 + distributed.rank())  # only rank 0's shuffles are used
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
    """Save the results of every collective on values that differ between ranks."""
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
    """Raise InputError on rank 1 while rank 0 waits for it."""
    if distributed.rank() == 1:
        raise InputError("this is wrong" + "!" * length)
    distributed.all_max(0)


def fail(device, folder: Path) -> None:
    raise InputError("this is wrong")


def break_down(device, folder: Path) -> None:
    """Rank 1 has a defect, as the other waits for it."""
    tracebacks_to(folder)
    if distributed.rank() == 1:
        raise AttributeError("'NoneType' object has no attribute 'ä'")
    distributed.barrier()
