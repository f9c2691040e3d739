"""Run jobs on this machine, several in parallel, or submit them to Slurm."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from common.errors import InputError, listed
from common.files import folder_lock
from trainer.distributed import available_cpus
from trainer.provenance import REPOSITORY
from trainer.signals import handling

from .plan import Job

TABLE = "table"  # name of the Slurm job that writes the table


def run_job(job: Job, started: set[subprocess.Popen], stopped: threading.Event, **popen) -> int:
    """Run the command of `job` and return its exit code.

    Waits while another process runs the job; skips it if it is done, and does not start it once
    `stopped` is set. `started` contains the process while it runs; `popen` are options of Popen.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(job.folder, stopped.is_set) as lock:
        if job.done():
            return 0
        if stopped.is_set():
            return 128 + signal.SIGTERM
        command = [sys.executable, *job.command]
        locks = () if lock is None else (lock,)  # inherited, in case this process dies first
        with subprocess.Popen(command, cwd=REPOSITORY, pass_fds=locks, **popen) as process:
            started.add(process)
            if stopped.is_set():  # while it started
                process.terminate()
            code = process.wait()
            started.discard(process)
        return code


def run_here(jobs: Sequence[Job], logs: Path, max_jobs: int = 1) -> None:
    """Run `jobs` on this machine, up to `max_jobs` in parallel and each after the jobs it needs.

    Output goes to `logs`. Parallel jobs share the CPU cores and get a GPU each if there are
    several. Ctrl-C and SIGTERM stop the commands, too, and raise SystemExit. Raises InputError if a
    job failed, after all jobs that do not need it have run.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.done()]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    print(f"{len(jobs)} jobs, {len(done)} done; logs: {logs}", flush=True)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(max_jobs):
        slots.put(slot)
    started: set[subprocess.Popen] = set()
    stopped = threading.Event()

    def work(job: Job) -> tuple[int, float]:
        slot, start = slots.get(), time.perf_counter()
        try:
            with open(_log_file(logs, job.name), "ab") as log:
                popen = {"env": _environment(slot, max_jobs), "stdout": log, "stderr": log}
                code = run_job(job, started, stopped, **popen)
        finally:
            slots.put(slot)
        return code, time.perf_counter() - start

    failed: list[Job] = []
    running: dict[Future, Job] = {}
    with ThreadPoolExecutor(max_jobs) as pool, _stopping(started, stopped):
        while True:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: max_jobs - len(running)]:
                waiting.remove(job)
                running[pool.submit(work, job)] = job
            if not running:
                break  # all done, or the rest needs a job that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                code, seconds = future.result()
                if code:
                    failed.append(job)
                    log_file = _log_file(logs, job.name)
                    print(f"FAILED: {job.name}; see {log_file}: {_last_line(log_file)}", flush=True)
                else:
                    done.add(job.name)
                    print(f"{len(done)}/{len(jobs)}  {job.name}  {seconds:.0f} s", flush=True)
    if failed:
        raise InputError(
            f"failed: {listed(job.name for job in failed)}; skipped {len(waiting)} jobs that need "
            f"them; see {logs}; rerun the same command to resume"
        )


@contextlib.contextmanager
def _stopping(started: set[subprocess.Popen], stopped: threading.Event) -> Iterator[None]:
    """Terminate the processes in `started` on exceptions and signals."""

    def exit_on(signum: int, _) -> None:
        raise SystemExit(128 + signum)

    try:
        with handling(exit_on):
            yield
    except BaseException:
        stopped.set()
        for process in list(started):
            process.terminate()
        raise


def _log_file(logs: Path, name: str) -> Path:
    return logs / f"{name.replace(' ', '-')}.log"


def _last_line(file: Path) -> str:
    """Return the last line of a log that is not empty, in which a command tells its error."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _environment(slot: int, max_jobs: int) -> dict[str, str]:
    """Return the environment of a job: its share of the CPU cores, and one of several GPUs."""
    environment = dict(os.environ)
    if max_jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // max_jobs)))
        if (gpus := torch.cuda.device_count()) > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    return environment


def become(job: Job) -> None:
    """Replace this process with the command of `job` (exec), unless it is done. The command gets
    the signals, and its exit code is this process's."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(job.folder) as lock:
        if not job.done():
            if lock is not None:
                os.set_inheritable(lock, True)
            os.chdir(REPOSITORY)
            os.execv(sys.executable, [sys.executable, *job.command])


def submit_to_slurm(
    jobs: Sequence[Job], root: Path, options: dict[str, str], arguments: Sequence[str]
) -> dict[str, str]:
    """Submit `python -m reproduction ARGUMENTS --only NAME` for each unfinished job and for the
    table; return the Slurm job IDs by name.

    A job starts once those it needs have succeeded, the table once all have ended. Output goes to
    `root`/logs. `options` are those of sbatch ("" if without a value). Raises InputError if sbatch
    is missing or rejects a job.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}  # for job.sbatch to find python
    if not shutil.which("sbatch"):
        raise InputError("--executor slurm needs sbatch: not found; run this on the cluster")
    script = [REPOSITORY / "scripts" / "slurm" / "job.sbatch", "-m", "reproduction", *arguments]
    waiting = [(job.name, "afterok", job.needs) for job in jobs if not job.done()]
    waiting.append((TABLE, "afterany", tuple(name for name, *_ in waiting)))
    job_ids: dict[str, str] = {}
    for name, condition, needs in waiting:
        # Singleton: jobs of one name run one at a time, so that none holds a GPU while it waits.
        after = ["singleton", options["dependency"]] if "dependency" in options else ["singleton"]
        if needed := [job_ids[need] for need in needs if need in job_ids]:
            after.append(":".join([condition, *needed]))
        values = {
            **options,
            "job-name": f"{name} {root.name}",
            "output": _log_file(logs, name),
            "dependency": ",".join(after),
        }
        flags = [f"--{key}={value}" if value else f"--{key}" for key, value in values.items()]
        command = ["sbatch", "--parsable", *flags, *script, f"--only={name}"]
        result = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace"
        )
        if result.returncode:
            raise InputError(
                f"sbatch rejected {name}: {result.stderr.partition(chr(10))[0]}"
                + f"; submitted before: {listed(job_ids.values(), 5)}; once they have ended, rerun "
                "the same command for the rest and the table" * bool(job_ids)
            )
        job_ids[name] = result.stdout.strip().partition(";")[0]  # 123;cluster
    return job_ids
