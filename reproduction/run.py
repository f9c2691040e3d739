"""Running jobs: here, several at once if asked, or as Slurm jobs."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from datasets.files import InputError, alone_in, listed
from moco.distributed import processors

from .plan import Job

REPOSITORY = Path(__file__).resolve().parent.parent


def run_job(job: Job, started: set[subprocess.Popen] | None = None, **how) -> int:
    """Run the command of `job`, unless it is done; where another process is at it, wait for that.

    Returns its exit code; `how` is for Popen. While it runs it is in `started`.
    """
    started = set() if started is None else started
    job.folder.mkdir(parents=True, exist_ok=True)
    with alone_in(job.folder) as lock:
        if job.done():
            return 0
        command = [sys.executable, *job.command]
        keep = () if lock is None else (lock,)  # the command holds the lock, too, should we go
        with subprocess.Popen(command, cwd=REPOSITORY, pass_fds=keep, **how) as process:
            started.add(process)
            code = process.wait()
            started.discard(process)
        return code


def run_here(jobs: Sequence[Job], logs: Path, at_once: int = 1) -> None:
    """Run `jobs`, `at_once` at a time, each when those it needs are done, with its output in
    `logs`. Of several GPUs each slot has one; the processors are shared out. What stops this
    (Ctrl-C, SIGTERM) stops the commands.

    Raises InputError in the end if a job failed, after all that do not need it have run.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.done()]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    print(f"{len(jobs)} jobs, {len(done)} of them done; their output is in {logs}", flush=True)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(at_once):
        slots.put(slot)
    started: set[subprocess.Popen] = set()

    def work(job: Job) -> tuple[int, float]:
        slot, began = slots.get(), time.perf_counter()
        try:
            with open(_log_file(logs, job), "ab") as log:
                how = {"env": _environment(slot, at_once), "stdout": log, "stderr": log}
                code = run_job(job, started, **how)
        finally:
            slots.put(slot)
        return code, time.perf_counter() - began

    failed: list[Job] = []
    running: dict[Future, Job] = {}
    with ThreadPoolExecutor(at_once) as pool, _stopping(started):
        while True:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running[pool.submit(work, job)] = job
            if not running:
                break  # all done, or what is left needs a job that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                code, seconds = future.result()
                if code:
                    failed.append(job)
                    print(f"FAILED: {job.name}; see {_log_file(logs, job)}", flush=True)
                else:
                    done.add(job.name)
                    print(f"{len(done)}/{len(jobs)}  {job.name}  {seconds:.0f} s", flush=True)
    if failed:
        raise InputError(
            f"failed: {listed(job.name for job in failed)}; {len(waiting)} that need them were not "
            f"run; the reasons are in {logs}; the same command goes on from here"
        )


@contextlib.contextmanager
def _stopping(started: set[subprocess.Popen]) -> Iterator[None]:
    """Whatever ends this early, SIGTERM included, ends the processes in `started`."""

    def leave(*_) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main_thread else None
    try:
        yield
    except BaseException:
        for process in list(started):
            process.terminate()
        raise
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _log_file(logs: Path, job: Job) -> Path:
    return logs / f"{job.name.replace(' ', '-')}.log"


def _environment(slot: int, at_once: int) -> dict[str, str]:
    """What a job that shares the machine with others gets of it."""
    environment = dict(os.environ)
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, processors() // at_once)))
        if (gpus := torch.cuda.device_count()) > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    return environment


class SlurmTask:
    """A job as submitit runs it: a failure fails the Slurm job, and the time limit sends it to the
    queue again, where it goes on from its last checkpoint."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self) -> None:
        if code := run_job(self.job):
            raise RuntimeError(f"{self.job.name} ended with exit code {code}")

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(SlurmTask(self.job))


def submit_to_slurm(
    jobs: Sequence[Job], logs: Path, parameters: dict[str, str | bool], last: Callable[[], object]
) -> dict[str, str]:
    """Submit the `jobs` that are not done, each to start when those it needs have ended well, and
    `last` for when all have ended. Returns Slurm's number of each by name.

    `parameters` are sbatch's own ("partition", …; True for those without a value), of which "time",
    in minutes, is needed. Raises InputError without it, submitit or Slurm.
    """
    parameters = dict(parameters)
    minutes, before = str(parameters.pop("time", "")), parameters.pop("dependency", None)
    if not minutes.isdecimal():
        raise InputError(
            "--slurm needs time=MINUTES, a job's limit; it goes on after it is reached"
        )
    try:
        import submitit
    except ImportError:
        raise InputError("--executor slurm needs submitit: pip install submitit") from None
    numbers: dict[str, str] = {}
    try:
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=100)
        os.environ["PYTHONPATH"] = os.pathsep.join(  # where the tasks find this package
            filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
        )

        def submit(name: str, task: Callable, dependency: str, needs: Sequence[str]) -> None:
            there = [numbers[need] for need in needs if need in numbers]
            after = [f"{dependency}:{':'.join(there)}"] if there else []
            more = {**parameters, "dependency": ",".join([*filter(None, [before]), *after])}
            executor.update_parameters(
                job_name=re.sub(r"\W+", "-", name),
                time=int(minutes),
                # What can never start is taken off the queue; else the table would wait for it.
                additional_parameters={
                    "kill-on-invalid-dep": "yes",
                    **{key: value for key, value in more.items() if value},
                },
            )
            numbers[name] = str(executor.submit(task).job_id)

        for job in jobs:
            if not job.done():
                submit(job.name, SlurmTask(job), "afterok", job.needs)
        submit("table", last, "afterany", list(numbers))
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"Slurm takes no jobs: {str(error).partition(chr(10))[0]}") from error
    return numbers
