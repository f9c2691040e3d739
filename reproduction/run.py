"""Running jobs: here, several at once if asked, or as Slurm jobs."""

import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from datasets.files import InputError, listed
from moco.distributed import processors

from .plan import Job

REPOSITORY = Path(__file__).resolve().parent.parent


def run_job(job: Job, **how) -> int:
    """Run the command of `job`, unless it is done. Returns its exit code; `how` is for
    subprocess.run."""
    if job.done():
        return 0
    return subprocess.run([sys.executable, *job.argv()], cwd=REPOSITORY, **how).returncode


def run_here(jobs: Sequence[Job], logs: Path, at_once: int = 1) -> None:
    """Run `jobs`, `at_once` at a time, each when those it needs are done, with its output in
    `logs`. Of several GPUs each slot has one; the processors are shared out.

    Raises InputError in the end if a job failed, after all that do not need it have run.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.done()]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    print(f"{len(jobs)} jobs, {len(done)} of them done; their output is in {logs}", flush=True)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(at_once):
        slots.put(slot)

    def work(job: Job) -> tuple[int, float]:
        slot, started = slots.get(), time.perf_counter()
        try:
            with open(_log_file(logs, job), "ab") as log:
                code = run_job(job, env=_environment(slot, at_once), stdout=log, stderr=log)
        finally:
            slots.put(slot)
        return code, time.perf_counter() - started

    failed: list[Job] = []
    running: dict[Future, Job] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while True:
            for job in [job for job in waiting if done.issuperset(job.needs)]:
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


def _log_file(logs: Path, job: Job) -> Path:
    return logs / f"{job.name.replace(' ', '-')}.log"


def _environment(slot: int, at_once: int) -> dict[str, str]:
    """What a job that shares the machine with others gets of it."""
    environment = dict(os.environ)
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, processors() // at_once)))
        if (gpus := torch.cuda.device_count()) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    return environment


class SlurmTask:
    """A job as submitit runs it: a failure fails the Slurm job, and a time limit or preemption
    sends it to the queue again, where it goes on from its last checkpoint."""

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

    `parameters` are sbatch's own ("partition", "time", …; True for those without a value). Raises
    InputError without submitit or Slurm.
    """
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
            after = {"dependency": f"{dependency}:{':'.join(there)}"} if there else {}
            name_of_it = re.sub(r"\W+", "-", name)
            executor.update_parameters(
                job_name=name_of_it, additional_parameters={**parameters, **after}
            )
            numbers[name] = str(executor.submit(task).job_id)

        for job in jobs:
            if not job.done():
                submit(job.name, SlurmTask(job), "afterok", job.needs)
        submit("table", last, "afterany", list(numbers))
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"Slurm takes no jobs: {str(error).partition(chr(10))[0]}") from error
    return numbers
