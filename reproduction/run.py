"""Running jobs: here, several at once if asked, or as Slurm jobs."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from common.errors import InputError, listed
from common.files import folder_lock
from trainer.distributed import processors
from trainer.signals import handling

from .plan import Job

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = "table"  # the name of what comes after all jobs


def run_job(job: Job, started: set[subprocess.Popen], stopped: threading.Event, **how) -> int:
    """Run the command of `job`, unless it is done; where another process is at it, wait for that.

    Returns its exit code; `how` is for Popen. While it runs it is in `started`, which it does not
    begin to once `stopped`.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(job.folder) as lock:
        if job.done():
            return 0
        if stopped.is_set():
            return 128 + signal.SIGTERM
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
    stopped = threading.Event()

    def work(job: Job) -> tuple[int, float]:
        slot, began = slots.get(), time.perf_counter()
        try:
            with open(_log_file(logs, job.name), "ab") as log:
                how = {"env": _environment(slot, at_once), "stdout": log, "stderr": log}
                code = run_job(job, started, stopped, **how)
        finally:
            slots.put(slot)
        return code, time.perf_counter() - began

    failed: list[Job] = []
    running: dict[Future, Job] = {}
    with ThreadPoolExecutor(at_once) as pool, _stopping(started, stopped):
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
                    print(f"FAILED: {job.name}; see {_log_file(logs, job.name)}", flush=True)
                else:
                    done.add(job.name)
                    print(f"{len(done)}/{len(jobs)}  {job.name}  {seconds:.0f} s", flush=True)
    if failed:
        raise InputError(
            f"failed: {listed(job.name for job in failed)}; {len(waiting)} that need them were not "
            f"run; the reasons are in {logs}; the same command goes on from here"
        )


@contextlib.contextmanager
def _stopping(started: set[subprocess.Popen], stopped: threading.Event) -> Iterator[None]:
    """Whatever ends this early, signals included, ends the processes in `started`."""

    def leave(signum: int, _) -> None:
        raise SystemExit(128 + signum)

    try:
        with handling(leave):
            yield
    except BaseException:
        stopped.set()
        for process in list(started):
            process.terminate()
        raise


def _log_file(logs: Path, name: str) -> Path:
    return logs / f"{name.replace(' ', '-')}.log"


def _environment(slot: int, at_once: int) -> dict[str, str]:
    """What a job that shares the machine with others gets of it."""
    environment = dict(os.environ)
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, processors() // at_once)))
        if (gpus := torch.cuda.device_count()) > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    return environment


def become(job: Job) -> None:
    """As `run_job`, but the command takes the place of this process: signals reach it, and its exit
    code is this process's."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(job.folder) as lock:
        if not job.done():
            if lock is not None:
                os.set_inheritable(lock, True)
            os.chdir(REPOSITORY)
            os.execv(sys.executable, [sys.executable, *job.command])


def submit_to_slurm(
    jobs: Sequence[Job], root: Path, options: dict[str, str], words: Sequence[str]
) -> dict[str, str]:
    """Have Slurm run `python -m reproduction WORDS --only NAME` for each of `jobs` that is not
    done, when those that it needs have ended well, and for the table, when all have ended. Returns
    Slurm's number of each by name; their output goes to the logs in `root`.

    `options` are sbatch's own ("partition", …; "" for those without a value). Raises InputError if
    Slurm does not take a job.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    scripts = REPOSITORY / "scripts"
    path = [os.path.dirname(sys.executable), os.environ.get("PATH", "")]  # where python is found
    environment = {**os.environ, "PATH": os.pathsep.join(path)}
    numbers: dict[str, str] = {}

    def submit(name: str, condition: str, needs: Iterable[str]) -> None:
        # Singleton: one job of a name at a time, so that no GPU waits for another one's run.
        after = ["singleton", options["dependency"]] if "dependency" in options else ["singleton"]
        if there := [numbers[need] for need in needs if need in numbers]:
            after.append(":".join([condition, *there]))
        given = {
            **options,
            "job-name": f"{name} {root.name}",
            "output": _log_file(logs, name),
            "dependency": ",".join(after),
        }
        flags = [f"--{key}={value}" if value else f"--{key}" for key, value in given.items()]
        script = [scripts / "slurm" / "job.sbatch", "-m", "reproduction", *words]
        command = ["sbatch", "--parsable", *flags, *script, f"--only={name}"]
        sent = subprocess.run(command, env=environment, capture_output=True, text=True)
        if sent.returncode:
            raise InputError(f"Slurm does not take {name}: {sent.stderr.partition(chr(10))[0]}")
        numbers[name] = sent.stdout.strip()

    if not shutil.which("sbatch"):
        raise InputError("--executor slurm needs sbatch, which is not here: run it on the cluster")
    for job in jobs:
        if not job.done():
            submit(job.name, "afterok", job.needs)
    submit(TABLE, "afterany", list(numbers))
    return numbers
