"""Kill trainings or one of their ranks at random times, fill their disk, damage their newest
checkpoint; rerun the same command and check that nothing is lost.

python tests/faults.py --kills 50
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402

from common.errors import InputError  # noqa: E402
from datasets import synthetic  # noqa: E402
from moco.checkpoint import load_checkpoint  # noqa: E402
from trainer.checkpoint import CHECKPOINT  # noqa: E402

# Tens of steps per second with a checkpoint after each: kills often hit a save.
TINY = "--arch conv4 --image-size 32 -b 8 --moco-k 32 --bn-groups 2 -j 0".split()
OFTEN = ["--save-minutes", "1e-9", "--dist-timeout", "60"]
TWO = ["--multiprocessing-distributed", "--nproc", "2"]


class Training:
    """A training command, rerun until it completes, with `counts` of events and the progress of its
    last checkpoint, (epochs, steps), in `before`."""

    def __init__(self, command: list[str], folder: Path, counts: Counter):
        self.command = [sys.executable, *command, "--model_path", str(folder)]
        self.folder = folder
        self.counts = counts
        self.before = (0, 0)

    @contextlib.contextmanager
    def running(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        options = {"cwd": REPOSITORY, "env": environment, "text": True, "start_new_session": True}
        with subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options
        ) as process:
            yield process
            self.stderr = process.stderr.read()
        self.code = process.returncode
        if "Traceback" in self.stderr:
            raise AssertionError(f"a traceback: {self.stderr}")

    def look(self) -> None:
        """Raise AssertionError if the checkpoint is invalid or behind the one before."""
        try:
            checkpoint = load_checkpoint(self.folder)
        except InputError as error:
            if "no checkpoint at" in str(error) and self.before == (0, 0):
                return  # none has been written yet
            raise AssertionError(f"lost: {error}") from error
        part = checkpoint["part"]
        progress = (checkpoint["epoch"], part["steps"] if part else 0)
        if progress < self.before:
            raise AssertionError(f"went back from {self.before} to {progress} (epochs, steps)")
        self.counts["restarts that resumed"] += progress > (0, 0)
        self.before = progress

    def finish(self) -> dict:
        with self.running():
            pass
        if self.code != 0:
            raise AssertionError(f"does not resume: {self.stderr}")
        if left := [path.name for path in self.folder.rglob(".*")]:
            raise AssertionError(f"left behind: {left}")
        return load_checkpoint(self.folder)


def killed(training: Training, kills: int, wait: random.Random) -> None:
    """Send SIGKILL to all processes, or to one rank, at a random time after a save."""
    for _ in range(kills):
        with training.running() as process:
            after_a_save(training.folder, process, wait.uniform(0, 1))
            children = _children(process.pid) if "--nproc" in training.command else []
            if process.poll() is not None:
                training.counts["ended before the kill"] += 1
            elif children and wait.random() < 0.5:
                os.kill(wait.choice(children), signal.SIGKILL)
                training.counts["one of two processes killed"] += 1
            else:
                os.killpg(process.pid, signal.SIGKILL)
                training.counts["killed"] += 1
        training.look()


def after_a_save(folder: Path, process: subprocess.Popen, seconds: float) -> None:
    """Wait until the process ends, or for some seconds after it saved a checkpoint."""
    start = time.time_ns()
    while process.poll() is None and not _saved_since(folder, start):
        time.sleep(0.02)
    time.sleep(seconds)


def _saved_since(folder: Path, nanoseconds: int) -> bool:
    try:
        return (folder / CHECKPOINT).stat().st_mtime_ns > nanoseconds
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Return the ranks that process `pid` started, without helpers of multiprocessing."""
    output = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True)
    return [int(word) for word in output.stdout.split()]


def damaged(training: Training, times: int, wait: random.Random) -> None:
    """Truncate the newest checkpoint or change bytes in it; the previous one must be used."""
    for _ in range(times):
        killed(training, 1, wait)
        newest = training.folder / CHECKPOINT
        content = bytearray(newest.read_bytes())
        if wait.random() < 0.5:
            content = content[: wait.randrange(len(content))]
            training.counts["newest checkpoint truncated"] += 1
        else:
            at = wait.randrange(len(content) // 2)
            content[at : at + 1000] = bytes(byte ^ 255 for byte in content[at : at + 1000])
            training.counts["newest checkpoint corrupted"] += 1
        newest.unlink()  # it may be a hard link to the previous one
        newest.write_bytes(content)
        training.before = (0, 0)  # one save behind
        training.look()


def filled(training: Training, times: int, disk: Path, wait: random.Random) -> None:
    """Fill the disk, a tmpfs, at a random time, then free it."""
    for _ in range(times):
        with training.running() as process:
            after_a_save(training.folder, process, wait.uniform(0, 0.5))
            ballast = disk / "ballast"
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                while True:
                    file.write(bytes(1 << 16))
            process.wait(60)
        if training.code != 2 or "No space left" not in training.stderr:
            raise AssertionError(f"exit code {training.code} on a full disk: {training.stderr}")
        ballast.unlink()
        training.counts["disk full"] += 1
        training.look()


def whole(command: list[str], folder: Path) -> dict:
    """Return the final weights of an uninterrupted run."""
    return Training(command, folder, Counter()).finish()["state_dict"]


def try_all(kills: int, seed: int, quick: bool, room: Path) -> Counter:
    """Run all faults on stages (a) and (d) with one and two processes, sharing out the `kills`; if
    `quick`, on stage (a) with one process only."""
    wait, counts = random.Random(seed), Counter()
    data = room / "data"
    synthetic.make(data, base=34, rare=26, size=40, seed=0)
    epochs = ["--epochs", str((8 if quick else 20) + kills)]  # so that kills hit before the end
    teacher, labels = room / "teacher", room / "labels"
    pretrain = ["main_moco.py", data, "--model_path", teacher, *TINY, "--epochs", "1"]
    label = ["generate_pseudo.py", "--datadir", data, "--resume", teacher, "--savedir", labels,
             "--k_shot", "2"]  # fmt: skip
    for command in () if quick else (pretrain, label):
        run = [sys.executable, *command]
        subprocess.run(run, cwd=REPOSITORY, check=True, capture_output=True)
    moco = ["main_moco.py", str(data), *TINY, *epochs]
    student = ["main_distill.py", str(data), "--savedir", str(labels), "-j", "0", *epochs,
               "--correction", "dic"]  # fmt: skip
    for name, command in {"a": moco, "d": student}.items():
        for processes in ([], TWO):
            if quick and (name, processes) != ("a", []):
                continue
            folder = room / f"{name}{len(processes)}"
            training = Training([*command, *OFTEN, *processes], folder, counts)
            killed(training, -(-kills // 4), wait)
            damaged(training, -(-kills // 25), wait)
            state = training.finish()["state_dict"]
            undisturbed = whole([*command, *processes], folder.with_name(f"{folder.name}-whole"))
            if not all(torch.equal(state[key], undisturbed[key]) for key in undisturbed):
                raise AssertionError(f"stage ({name}) ended with other weights than without kills")
            counts["identical to an uninterrupted run"] += 1
    disk = room / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        counts["not tested: a full disk, which needs root"] += 1
        return counts
    try:
        training = Training([*moco, *OFTEN], disk / "run", counts)
        filled(training, max(1, kills // 10), disk, wait)
        state = training.finish()["state_dict"]
        if not all(torch.equal(state[key], value) for key, value in
                   load_checkpoint(room / "a0-whole")["state_dict"].items()):  # fmt: skip
            raise AssertionError("the run on a full disk ended with other weights")
        counts["identical to an uninterrupted run"] += 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    parser.add_argument("--quick", action="store_true", help="only stage (a) with one process")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="faults-") as room:
        os.environ["XDG_CACHE_HOME"] = room
        start = time.monotonic()
        counts = try_all(args.kills, args.seed, args.quick, Path(room))
    for name, count in counts.items():
        print(f"{count:5d}  {name}")
    print(json.dumps({"seconds": round(time.monotonic() - start), **counts}))


if __name__ == "__main__":
    main()
