"""What jobs ask SLURM for: more only after a job ended for want of it.

SLURM writes why it ended a job into that job's log, which the executor keeps unless the job ended well. No other record
is as good: the state is FAILED where memory is watched by accounting, the inner step alone runs out of memory where it
is watched by control groups, and `sacct` knows nothing where no data base is kept. A job that was cancelled or
preempted, lost its node or failed by itself asks for as much as before.
"""

import functools
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

LOGS = Path(".snakemake/slurm_logs")
"""Where the executor keeps logs if not told otherwise, for 10 days."""
MOST_MINUTES = 1440
"""The longest time to ask for: many clusters grant no more than a day."""
MOST_TIMES = 4
"""The most memory to ask for where no node's is known, as a multiple of what the stage asks for at first."""
_WORDS = {
    "memory": "(oom.kill|out of memory|exceeded .*memory limit)",
    "minutes": "CANCELLED AT .* DUE TO TIME LIMIT",
}
WANT = {name: re.compile(rf"^(slurmstepd|srun)\S* error: .*{words}", re.M | re.I) for name, words in _WORDS.items()}
"""What SLURM says where it ends a job for want of memory or time. PyTorch's words on a GPU's memory are others."""


def job_folder(logs: Path | None, rule: str, wildcards: Iterable[str]) -> Path:
    """The folder in which the executor (2.8) keeps the logs of one job, one by attempt."""
    return (logs or LOGS) / f"rule_{rule}" / "_".join(wildcards).replace("/", "_")


def ended_for(want: str, folder: Path) -> int:
    """How many attempts of a job ended for want of ``memory`` or ``minutes``, by their logs."""
    return sum(bool(WANT[want].search(path.read_text(errors="replace"))) for path in folder.glob("*.log"))


def memory_mb(first: int, folder: Path, partition: str | None) -> int:
    """Memory of a job in MB: doubled after each attempt that ran out of it, up to the largest node of the partition."""
    times = ended_for("memory", folder)
    most = (largest_node(partition) or first * MOST_TIMES) if times else first
    return max(first, min(first * 2**times, most))


def minutes(first: int, folder: Path) -> int:
    """Time of a job that always starts over: doubled after each attempt that ran out of it, up to a day."""
    return max(first, min(first * 2 ** ended_for("minutes", folder), MOST_MINUTES))


@functools.cache
def largest_node(partition: str | None) -> int | None:
    """Memory in MB of the largest node of a partition, or of the default one; None if SLURM does not tell."""
    command = ["sinfo", "--noheader", "--Node", "--format=%P %m"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    nodes = [(name, int(size.rstrip("+"))) for name, size in map(str.split, told.splitlines())]
    own = [size for name, size in nodes if (name.rstrip("*") == partition if partition else name.endswith("*"))]
    return max(own, default=None)
