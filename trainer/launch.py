"""Start a run's processes, connect them, and end them together."""

import logging
import os
import re
import signal
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common.errors import InputError, listed
from common.failures import Unexpected, explain, outcome, print_any_name

from . import distributed
from .distributed import available_cpus, pick_device
from .launch_plan import ANY_PORT, Plan
from .signals import EXIT_CODES, Stopped, forwarding, hold, release

RERUN = "rerun the same command to resume from the last checkpoint"
LOST_CONNECTION = "lost connection to another rank"
TIMED_OUT = "rank 0 timed out"
PIPE_CAPACITY = 50_000  # characters that fit into a pipe before it is read
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # rank 0 may be scoring meanwhile

Worker = Callable[..., None]  # called with a device and the arguments given to `launch`


def launch(plan: Plan, worker: Worker, *arguments: object) -> None:
    """Run `worker(device, *arguments)` in each process that `plan` has this one start, or in this
    process if it is itself a rank.

    If a worker fails, all end and its error is raised here; of spawned processes as InputError, or
    as Unexpected if `outcome` says so.
    """
    if plan.url is None:
        worker(pick_device(plan.device, plan.gpu), *arguments)
        return
    if plan.url == ANY_PORT:  # this process opens the store, on a free port
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        plan = replace(plan, url=f"tcp://127.0.0.1:{server.port}", store_is_open=True)
    if plan.nproc == 1:
        _join(0, plan, worker, arguments)
        return
    errors: SimpleQueue[tuple[int, str]] = mp.get_context("spawn").SimpleQueue()
    # Silence the warning that the other processes are terminated; the error raised says so.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    # Spawned processes do not inherit the start method; by another one, each of their data-loading
    # workers would import torch again.
    args = (plan, worker, arguments, errors, mp.get_start_method())
    hold()
    try:
        context = mp.spawn(_spawned, nprocs=plan.nproc, args=args, join=False)
    except OSError:  # too few files or processes
        for process in mp.active_children():
            process.kill()
        raise
    with forwarding(context.processes) as signals:
        release()
        try:
            while not context.join():
                pass
        except (mp.ProcessExitedException, mp.ProcessRaisedException):
            codes = [process.exitcode for process in context.processes]
            if cause := _cause(codes, signals, errors):
                raise cause from None
            raise


def _cause(
    codes: Sequence[int | None], signals: Sequence[int], errors: SimpleQueue[tuple[int, str]]
) -> Exception | None:
    """Return why processes ended with these exit codes, after `signals` to this process; None if it
    is unknown."""
    messages = []
    while not errors.empty():
        messages.append(errors.get())
    # A lost connection is a consequence, not the cause.
    causes = [found for found in messages if not found[1].startswith(LOST_CONNECTION)]
    if signals and not causes:  # a checkpoint that could not be saved is one
        return Stopped(signals[0], all(code in EXIT_CODES for code in codes))
    if killed := [n for n, code in enumerate(codes) if code == -signal.SIGKILL]:
        ranks = f"local rank {listed(killed)} of {len(codes)}"
        return InputError(f"{ranks} was killed (out of memory?); {RERUN}")
    if messages:
        code, cause = (causes or messages)[0]
        return (InputError if code == 2 else Unexpected)(cause)
    stopped = [code for code in codes if code and code in EXIT_CODES]
    return Stopped(stopped[0] - 128) if stopped else None


def _spawned(
    index: int,
    plan: Plan,
    worker: Worker,
    arguments: tuple[object, ...],
    errors: SimpleQueue[tuple[int, str]],
    start_method: str,
) -> None:
    """Run `_join` in a spawned process, sending the `outcome` of an error to `errors`."""
    mp.set_start_method(start_method, force=True)
    print_any_name()
    try:
        release()
    except KeyboardInterrupt:  # pending since before the start
        sys.exit(1)
    try:
        _join(index, plan, worker, arguments)
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # mp.spawn would exit with 0
    except Exception as error:
        code, line = outcome(error)
        errors.put((code, line[: PIPE_CAPACITY // plan.nproc]))
        sys.exit(code)


def _join(index: int, plan: Plan, worker: Worker, arguments: tuple[object, ...]) -> None:
    """Join the process group as the plan's rank `index`, counted from its first, and run `worker`
    on this rank's device."""
    gpu, backend, rank = plan.gpu, plan.backend, plan.first_rank + index
    if plan.local_world_size > 1:
        gpus = torch.cuda.device_count()  # 1 where srun restricts each process to its own GPU
        gpu = (plan.local_rank + index) % gpus if gpus else None
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, available_cpus() // plan.local_world_size))
    device = pick_device(plan.device, gpu)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    completed = False
    try:
        dist.init_process_group(
            backend, store=_rendezvous(plan, rank), rank=rank, world_size=plan.world_size,
            timeout=COLLECTIVE_TIMEOUT, device_id=device if backend == "nccl" else None,
        )  # fmt: skip
        if backend == "nccl":
            distributed.cpu_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        worker(device, *arguments)
        completed = True
    except Stopped:
        completed = True
        raise
    except RuntimeError as error:  # gloo's are plain ones
        if explain(error) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise _lost_connection(error) from error
    finally:
        # After a failure nccl would wait for pending communication; the process exits anyway.
        if dist.is_initialized() and (completed or backend == "gloo"):
            dist.destroy_process_group()
        if plan.url is not None and plan.url.startswith("file://"):
            Path(plan.url.removeprefix("file://")).unlink(missing_ok=True)


def _lost_connection(error: RuntimeError) -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines[1:] and "NCCL" in lines[-1]:  # NCCL gives the reason in its last line
        lines = lines[-1:]
    reason = re.sub(r"^\[\S+\] ", "", lines[0]) if lines else type(error).__name__
    return InputError(f"{LOST_CONNECTION} ({reason}); {RERUN}")


def _rendezvous(plan: Plan, rank: int) -> dist.Store:
    """Return the run's store once all ranks have joined it.

    Raises InputError naming the ranks that are missing after `plan.timeout` seconds.
    """
    try:
        with ThreadPool(1) as pool:  # so that Ctrl-C and the timeout interrupt it
            store = pool.apply_async(_open_store, (plan, rank)).get(plan.timeout + 5)
    except (mp.TimeoutError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "no answer"
        raise InputError(
            f"rank {rank} of {plan.world_size} cannot reach the others at {plan.url}"
            f"{'' if rank == 0 else ', which rank 0 opens'}: {reason}"
        ) from error
    keys = [f"rank {other} has joined" for other in range(plan.world_size)]
    deadline = time.monotonic() + plan.timeout
    try:
        store.set(keys[rank], "")
        while not store.check(keys):  # store.wait would ignore Ctrl-C
            if store.check([TIMED_OUT]):
                raise RuntimeError(TIMED_OUT)
            if time.monotonic() > deadline:
                missing = [other for other, key in enumerate(keys) if not store.check([key])]
                if rank == 0:
                    store.set(TIMED_OUT, "")
                    time.sleep(1)  # for the others to read it: the store ends with this process
                raise InputError(
                    f"missing ranks {listed(missing)} of {plan.world_size} at {plan.url} after "
                    f"{plan.timeout:.0f} s; --dist-timeout sets a longer wait"
                )
            time.sleep(0.1)
    except RuntimeError:
        raise InputError(
            f"not all of {plan.world_size} ranks joined at {plan.url} within {plan.timeout:.0f} s; "
            "the error of rank 0 names the missing ranks"
        ) from None
    return store


def _open_store(plan: Plan, rank: int) -> dist.Store:
    assert plan.url is not None  # as for any plan of several ranks
    timeout = timedelta(seconds=plan.timeout)
    parts = urllib.parse.urlsplit(plan.url)
    if parts.scheme == "env":
        return next(dist.rendezvous(plan.url, timeout=timeout))[0]
    if parts.scheme == "file":
        return dist.FileStore(parts.path, plan.world_size)
    if parts.hostname is None or parts.port is None:
        raise ValueError("expected tcp://HOST:PORT")
    socket.getaddrinfo(parts.hostname, parts.port)  # fail early: TCPStore would retry
    is_master = rank == 0 and not plan.store_is_open
    return dist.TCPStore(
        parts.hostname, parts.port, is_master=is_master, timeout=timeout, wait_for_workers=False
    )
