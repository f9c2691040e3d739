"""The Slurm scripts on a real Slurm: stopped jobs resume, cancelled jobs stay cancelled."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from conftest import REPOSITORY, TINY, states_equal
from conftest import call as script
from datasets import synthetic
from moco.checkpoint import load_checkpoint
from trainer.checkpoint import CHECKPOINT

pytestmark = pytest.mark.slow
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    if not shutil.which("slurmctld") or os.geteuid() != 0:
        assert os.environ.get("REQUIRE_SLURM") != "1", "REQUIRE_SLURM=1, but no Slurm, or not root"
        pytest.skip("needs root and Slurm's daemons (apt-get install slurm-wlm)")
    folder = tmp_path_factory.mktemp("slurm")
    script = ["bash", REPOSITORY / "tests" / "slurm_cluster.sh"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
        try:
            subprocess.run([*script, "up", folder], check=True)
            yield
        finally:
            subprocess.run([*script, "down", folder], check=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data folder with 18 batches of 8 an epoch: a second."""
    root = tmp_path_factory.mktemp("images")
    synthetic.make(root, base=150, rare=26, size=40, seed=0)
    return root


def call(*command: object, **environment: str) -> str:
    return subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, env={**os.environ, **environment}, text=True,
        check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def submitted(output: str) -> dict[str, str]:
    """Return the printed job IDs by name."""
    lines = [line.split("  ") for line in output.splitlines() if line[:1].isdigit()]
    return {words[1]: words[0] for words in lines}


def chain(data, out, *options: object, epochs: int = 8, pretrain: str = "") -> dict[str, str]:
    flags = {
        "PRETRAIN": " ".join([*TINY, "--epochs", str(epochs), pretrain]),
        "LABEL": "--k-shot 2 -j 0",
        "DISTILL": "-j 0",
        "TEST": "-j 0",
    }
    return submitted(call("bash", "scripts/slurm/chain.sh", data, out, *options, **flags))


def about(number: str) -> dict[str, str]:
    words = call("scontrol", "show", "job", "--oneliner", number).split()
    return dict(word.partition("=")[::2] for word in words)


def wait_for(condition, seconds=120):
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("timed out")


def is_in(number: str, *states: str) -> bool:
    return about(number)["JobState"] in states


def epochs_logged(run) -> list[int]:
    log = run / "log.jsonl"
    lines = map(json.loads, log.read_text().splitlines() if log.exists() else [])
    return [line["epoch"] for line in lines if "epoch" in line]


def advance(run) -> None:
    """Wait until another epoch is done and the next one has started."""
    before = len(epochs_logged(run))
    wait_for(lambda: len(epochs_logged(run)) > before)
    time.sleep(0.3)


def stop(number: str, run, *command: object) -> None:
    """Stop a training run with `command` in the middle of an epoch; wait until it is requeued."""
    part = None
    while not part:  # it stopped between two epochs
        advance(run)
        call(*command)
        wait_for(lambda: is_in(number, "PENDING"))
        part = load_checkpoint(run)["part"]


def test_chain_stopped_repeatedly(images, tmp_path):
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    jobs = chain(images, out)
    stop(jobs["pretrain"], out / "pretrained", "scancel", "--signal=USR1", jobs["pretrain"])
    stop(jobs["distill"], out / "student", "scontrol", "requeue", jobs["distill"])
    # Request all CPUs in the partition of higher priority.
    needy = ["sbatch", "--partition=high", "--cpus-per-task=8", "--output=/dev/null", "--wrap=true"]
    stop(jobs["distill"], out / "student", *needy)
    # Meanwhile, the same without Slurm.
    script("main_moco", images, *TINY, "--epochs", 8, "--model-path", whole / "pretrained")
    label = ["--resume", whole / "pretrained", "--savedir", whole / "labels", "--k-shot", 2]
    script("generate_pseudo", images, *label, "-j", 0)
    distil = ["--savedir", whole / "labels", "--model-path", whole / "student"]
    script("main_distill", images, *distil, "-j", 0)
    wait_for(lambda: is_in(jobs["test"], *ENDED))
    assert {about(number)["JobState"] for number in jobs.values()} == {"COMPLETED"}
    restarts = {name: int(about(number)["Restarts"]) for name, number in jobs.items()}
    assert restarts["pretrain"] >= 1 and restarts["distill"] >= 2
    assert restarts["label"] == restarts["test"] == 0
    for run in ("pretrained", "student"):
        found, other = (load_checkpoint(folder / run) for folder in (out, whole))
        assert found["epoch"] == 8 and states_equal(found["state_dict"], other["state_dict"])
        for a, b in zip(*(c["optimizer"]["state"].values() for c in (found, other))):
            assert (a["momentum_buffer"] == b["momentum_buffer"]).all()
        assert epochs_logged(out / run) == list(range(1, 9))
    (scores,) = (out / "student").glob("test_*.json")
    assert 0 <= json.loads(scores.read_text())["accuracy"] <= 1
    assert "stopped by SIGUSR1" in (out / "pretrain.log").read_text(errors="replace")
    log = (out / "distill.log").read_text(errors="replace")  # Slurm writes into the progress bar
    assert "DUE TO PREEMPTION" in log and "8 epochs done" in log
    done = jobs["label"], jobs["test"]  # a job can be requeued after its end, too
    for number in done:
        call("scontrol", "requeue", number)
    wait_for(lambda: all(is_in(number, *ENDED) for number in done))
    assert all(is_in(number, "COMPLETED") for number in done)


def test_a_job_that_ends_within_the_grace_time_of_a_preemption_is_requeued(images, tmp_path):
    job = ["sbatch", "--parsable", "--partition=grace", f"--output={tmp_path}/log"]
    train = ["main_moco.py", images, *TINY, "--epochs", 200, "--model-path", tmp_path / "run"]
    number = call(*job, "scripts/slurm/job.sbatch", *train).strip()
    needy = ["sbatch", "--partition=high", "--cpus-per-task=8", "--output=/dev/null", "--wrap=true"]
    stop(number, tmp_path / "run", *needy)
    wait_for(lambda: is_in(number, "RUNNING"))
    assert about(number)["Restarts"] != "0"
    call("scancel", number)
    wait_for(lambda: is_in(number, *ENDED))
    assert about(number)["JobState"] == "CANCELLED"


def test_time_limit_requeues_and_scancel_ends(images, tmp_path):
    """The limit of a minute is below the two minutes before it at which Slurm sends the signal, so
    the signal comes at once or at the next check, within half a minute."""
    jobs = chain(images, tmp_path, "--time=1", epochs=10_000)
    first, run, log = jobs["pretrain"], tmp_path / "pretrained", tmp_path / "pretrain.log"
    # Signals during the start of Python or between two epochs do not count: wait for a later one.
    expected = "saved in epoch", "stopped by SIGUSR1"
    wait_for(log.exists)
    wait_for(lambda: all(line in log.read_text(errors="replace") for line in expected), seconds=240)
    wait_for(lambda: about(first)["Restarts"] != "0")
    advance(run)
    call("scancel", first)
    wait_for(lambda: all(is_in(number, "CANCELLED") for number in jobs.values()))
    saved = (run / CHECKPOINT).stat().st_mtime_ns
    time.sleep(8)  # requeued jobs would start after five seconds
    assert all(is_in(number, "CANCELLED") for number in jobs.values())
    assert (run / CHECKPOINT).stat().st_mtime_ns == saved


def test_stages_after_a_failure_are_cancelled(images, tmp_path):
    jobs = chain(images, tmp_path, pretrain="--no-such-flag")
    wait_for(lambda: all(is_in(number, *ENDED) for number in jobs.values()))
    states = [about(number)["JobState"] for number in jobs.values()]
    assert states == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert about(jobs["pretrain"])["ExitCode"] == "2:0"
    assert "--no-such-flag" in (tmp_path / "pretrain.log").read_text()


def test_two_tables_share_a_requeued_run(smears, tmp_path):
    narrow = "--table 5 --epochs 24 --image-size 32 --shots 1 --seeds 0 --tasks 0 -j 0"
    command = ["python", "-m", "reproduction", *narrow.split(), "--methods", "moco_v1"]
    command += ["--data", smears, "--out", tmp_path, "--executor", "slurm", "--slurm", "time=5"]
    both = [submitted(call(*command)) for _ in range(2)]
    root = tmp_path / "papsmear-conv4-32px-24epochs"
    run, first = root / "encoders" / "moco_v1", both[0]["encoder moco_v1"]
    advance(run)
    call("scontrol", "requeue", first)
    wait_for(lambda: is_in(first, "PENDING"))
    assert about(both[1]["encoder moco_v1"])["JobState"] == "PENDING"
    for jobs in both:
        wait_for(lambda last=jobs["table"]: is_in(last, *ENDED))
        assert {about(number)["JobState"] for number in jobs.values()} == {"COMPLETED"}
    assert epochs_logged(run) == list(range(1, 25))
    assert "\nmoco_v1,1,0," in (root / "table5_runs.csv").read_text()
    log = (root / "logs" / "encoder-moco_v1.log").read_text(errors="replace")
    assert log.count("24 epochs done") == 1, log


def test_one_process_per_task(images, tmp_path):
    command = [images, *TINY, "--epochs", 6, "--model_path"]
    flags = ["--ntasks=2", f"--output={tmp_path}/log", "scripts/slurm/pretrain.sbatch"]
    number = call("sbatch", "--parsable", *flags, *command, tmp_path / "srun").strip()
    stop(number, tmp_path / "srun", "scancel", "--signal=USR1", number)
    wait_for(lambda: is_in(number, *ENDED))
    log = (tmp_path / "log").read_text(errors="replace")
    assert is_in(number, "COMPLETED") and log.count("6 epochs done") == 1, log
    several = ["--multiprocessing-distributed", "--nproc", 2]
    call("python", "main_moco.py", *command, tmp_path / "spawned", *several)
    found, other = (load_checkpoint(tmp_path / name) for name in ("srun", "spawned"))
    assert states_equal(found["state_dict"], other["state_dict"])


def test_sbatch_options_are_the_same():
    scripts = list((REPOSITORY / "scripts" / "slurm").glob("*.sbatch"))
    assert len(scripts) == 5
    assert len({path.read_text().splitlines()[1] for path in scripts}) == 1
