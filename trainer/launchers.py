"""The processes that torchrun or srun started, from their environment variables."""

import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any

from common.errors import InputError, listed

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_ID",
        "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_LAUNCHER_PORT")  # fmt: skip


def launched() -> tuple[str | None, dict[str, Any]]:
    """Return the launcher that started this process as one of several, torchrun or srun, and the
    fields of a `launch_plan.Plan` that it set; None and {} without a launcher.

    Under both, as torchrun in srun's tasks, torchrun's count. Raises InputError if a launcher's
    variables are incomplete, or those of both conflict.
    """
    tasks = 1  # in a batch script, outside any step
    if os.environ.get("SLURM_STEP_NUM_TASKS"):
        tasks = _integer("SLURM_STEP_NUM_TASKS")
    if any(name in os.environ for name in TORCHRUN[:3]):
        _require("torchrun", TORCHRUN)
        rank, size, local_rank, local_size = (_integer(name) for name in TORCHRUN[:4])
        if not 0 <= rank < size:
            raise InputError(f"RANK must be in [0, {size - 1}] with WORLD_SIZE={size}, got {rank}")
        if tasks > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # set by hand
            task = os.environ.get("SLURM_PROCID")
            if (task, tasks) != (str(rank), size):
                raise InputError(
                    f"srun set rank {task} of {tasks}, but RANK={rank} and WORLD_SIZE={size}; "
                    "unset RANK and WORLD_SIZE"
                )
        ranks = {"world_size": size, "first_rank": rank, "local_rank": local_rank}
        return "torchrun", {"url": "env://", **ranks, "local_world_size": local_size}
    if tasks == 1:
        return None, {}
    _require("srun", SRUN)
    rank, local_rank, node = (_integer(name) for name in SRUN[:3])
    tasks_per_node = _tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
    job = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
    if len(tasks_per_node) == 1:  # meet in a file; the port distinguishes restarts of a step
        name = f"processes-meet-{job}-{os.environ['SLURM_STEP_LAUNCHER_PORT']}"
        url = f"file://{os.path.join(tempfile.gettempdir(), name)}"
    else:
        host = os.environ.get("MASTER_ADDR") or _first_host(os.environ["SLURM_STEP_NODELIST"])
        step = _integer("SLURM_JOB_ID") + 7 * _integer("SLURM_STEP_ID")
        port = os.environ.get("MASTER_PORT") or 20_000 + step % 10_000
        url = f"tcp://{host}:{port}"
    ranks = {"world_size": tasks, "first_rank": rank, "local_rank": local_rank}
    return "srun", {"url": url, **ranks, "local_world_size": tasks_per_node[node]}


def _require(launcher: str, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in os.environ]:
        present = [name for name in names if name in os.environ]
        raise InputError(
            f"incomplete {launcher} environment: missing {listed(missing)}; let {launcher} set "
            f"them, or unset {listed(present) or 'the others'}"
        )


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise InputError(f"{name}={os.environ[name]}: expected a number") from None


def _tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's "2(x3),1" to [2, 2, 2, 1]."""
    counts = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's list of hosts: gpu03-a of "gpu[03-05,7]-a,node1"."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert match is not None  # it matches the empty string
    prefix, number, suffix = match.groups("")
    return prefix + number + suffix
