"""Starting a run's processes, having them meet, and ending them together."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common.errors import InputError, listed, reason

from . import distributed
from .distributed import pick_device, processors
from .launch_plan import ANY_PORT, Plan
from .signals import EXIT_CODES, Stopped, hold, passing_on, release

GOES_ON = "the same command goes on from the last checkpoint"
LOST = "cannot talk to the other processes, or lost one"
GIVEN_UP = "process 0 has given up"
PIPE = 50_000  # characters that fit into a pipe before anybody reads it
WAIT = timedelta(minutes=30)  # in a collective: the main process may be scoring meanwhile

T = TypeVar("T")
Worker = Callable[..., None]  # of a device, and of what `launch` was given for it


def launch(plan: Plan, worker: Worker, *arguments: object) -> None:
    """Run `worker(device, *arguments)` in each of the processes that are this one's to start, or in
    this one if it is one of several.

    A worker's failure ends them all, and is raised here: an InputError or OSError as InputError.
    """
    if plan.url is None:
        with memory_told():
            worker(pick_device(plan.device, plan.gpu), *arguments)
        return
    if plan.url == ANY_PORT:  # this process has them meet, at a port that is free
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        plan = replace(plan, url=f"tcp://127.0.0.1:{server.port}", is_opened=True)
    if plan.nproc == 1:
        _join(0, plan, worker, arguments)
        return
    complaints: SimpleQueue[str] = mp.get_context("spawn").SimpleQueue()
    # Its warning that one process's end ends the others says nothing that the error does not.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    # How processes start other ones is lost on those that are spawned: their readers of images
    # would each load all of torch.
    handed = (plan, worker, arguments, complaints, mp.get_start_method())
    hold()
    context = mp.spawn(_spawned, nprocs=plan.nproc, args=handed, join=False)
    with passing_on(context.processes) as signals:
        release()
        try:
            while not context.join():
                pass
        except (mp.ProcessExitedException, mp.ProcessRaisedException):
            codes = [process.exitcode for process in context.processes]
            if signals:
                begun = all(code in EXIT_CODES for code in codes)
                raise Stopped(signals[0], begun) from None
            if lost := [n for n, code in enumerate(codes) if code == -signal.SIGKILL]:
                raise InputError(
                    f"process {listed(lost)} of {plan.nproc} was killed (too little memory?); "
                    + GOES_ON
                ) from None
            said = []
            while not complaints.empty():
                said.append(complaints.get())
            if said:  # who lost another one has less to say than that one
                raise InputError(min(said, key=lambda text: text.startswith(LOST))) from None
            if stopped := [code for code in codes if code in EXIT_CODES]:
                raise Stopped(stopped[0] - 128) from None
            raise


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Raise InputError where the block lacks memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not lacking and "can't allocate memory" not in str(error):  # on processors
            raise
        tried = re.search(r"tried to allocate [\d.]+ \w+", str(error), re.IGNORECASE)
        why = tried[0].lower() if tried else reason(error)
        raise InputError(
            f"too little memory ({why}); smaller -b, --image-size or --moco-k take less"
        ) from error


def _spawned(
    number: int,
    plan: Plan,
    worker: Worker,
    arguments: tuple[object, ...],
    complaints: SimpleQueue[str],
    start_method: str,
) -> None:
    """`_join` as a process of its own, whose errors for people go to `complaints`."""
    mp.set_start_method(start_method, force=True)
    try:
        release()
    except KeyboardInterrupt:  # from before anything was begun
        sys.exit(1)
    try:
        _join(number, plan, worker, arguments)
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # spawn would have it end well
    except (InputError, OSError) as error:
        complaints.put(str(error)[: PIPE // plan.nproc])
        sys.exit(2)


def _join(number: int, plan: Plan, worker: Worker, arguments: tuple[object, ...]) -> None:
    """Pick a device, meet the other processes, work, leave."""
    gpu, backend, rank = plan.gpu, plan.backend, plan.first + number
    if plan.on_machine > 1:
        gpus = torch.cuda.device_count()  # or one, where srun shows each process its own
        gpu = (plan.local + number) % gpus if gpus else None
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, processors() // plan.on_machine))
    device = pick_device(plan.device, gpu)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    ended = False
    try:
        dist.init_process_group(
            backend, store=_meet(plan, rank), rank=rank, world_size=plan.processes, timeout=WAIT
        )
        distributed.hosts = _hosts() if backend == "nccl" else None
        with memory_told():
            worker(device, *arguments)
        ended = True
    except Stopped:
        ended = True
        raise
    except dist.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:
        if "gloo" not in str(error):  # whose errors have no class of their own
            raise
        raise _lost(error) from error
    finally:
        # By nccl it would wait for what the others have not sent, and this process leaves anyway.
        if dist.is_initialized() and (ended or backend == "gloo"):
            dist.destroy_process_group()
        if plan.url is not None and plan.url.startswith("file://"):
            Path(plan.url.removeprefix("file://")).unlink(missing_ok=True)


def _hosts() -> dist.ProcessGroup:
    """All processes once more, who then talk by gloo."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # a number, in a process that is none of them
    return group


def _lost(error: RuntimeError) -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines[1:] and "NCCL" in lines[-1]:  # whose last line has the reason
        lines = lines[-1:]
    reason = re.sub(r"^\[\S+\] ", "", lines[0]) if lines else type(error).__name__
    return InputError(f"{LOST} ({reason}); {GOES_ON}")


def _meet(plan: Plan, rank: int) -> dist.Store:
    """Where all of the run's processes are, once they are all there.

    Raises InputError naming those that are missing after `plan.patience` seconds.
    """
    try:
        store = _within(plan.patience + 5, lambda: _open_store(plan, rank))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"process {rank} of {plan.processes} cannot reach the others at {plan.url}"
            f"{'' if rank == 0 else ', which process 0 opens'}: {reason}"
        ) from error
    names = [f"process {number} is here" for number in range(plan.processes)]
    latest = time.monotonic() + plan.patience
    try:
        store.set(names[rank], "")
        while not store.check(names):  # not torch's own waiting, in which Ctrl-C would do nothing
            if store.check([GIVEN_UP]):
                raise _gone(plan)
            if time.monotonic() > latest:
                missing = [number for number, name in enumerate(names) if not store.check([name])]
                if rank == 0:
                    store.set(GIVEN_UP, "")
                    time.sleep(1)  # what it opened goes with it: the others see this before
                raise InputError(
                    f"of {plan.processes} processes {listed(missing)} did not come to {plan.url} "
                    f"within {plan.patience:.0f} s; --dist-timeout waits longer"
                )
            time.sleep(0.1)
    except RuntimeError:
        raise _gone(plan) from None
    return store


def _gone(plan: Plan) -> InputError:
    return InputError(
        f"not all of {plan.processes} processes came to {plan.url} within {plan.patience:.0f} s; "
        "process 0, which has left, names those that are missing"
    )


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work()` returns or raises; TimeoutError if it does neither in time. Ctrl-C ends it."""
    outcome: Future[T] = Future()

    def wait() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        return outcome.result(seconds)
    except FutureTimeout:
        raise TimeoutError("nobody answers there") from None


def _open_store(plan: Plan, rank: int) -> dist.Store:
    assert plan.url is not None  # who is alone meets nobody
    patience = timedelta(seconds=plan.patience)
    parts = urllib.parse.urlsplit(plan.url)
    if parts.scheme == "env":
        return next(dist.rendezvous(plan.url, timeout=patience))[0]
    if parts.scheme == "file":
        return dist.FileStore(parts.path, plan.processes)
    if parts.hostname is None or parts.port is None:
        raise ValueError("expected tcp://HOST:PORT")
    socket.getaddrinfo(parts.hostname, parts.port)  # a wrong name would be tried until the end
    opens = rank == 0 and not plan.is_opened
    return dist.TCPStore(
        parts.hostname, parts.port, is_master=opens, timeout=patience, wait_for_workers=False
    )
