"""What jobs ask a queue for after an attempt that failed, by the logs that SLURM leaves."""

import pytest

from dfshield.planning import queue
from dfshield.planning.queue import ended_for, job_folder, largest_node, memory_mb, minutes

OUT_OF_MEMORY = [
    # control groups: up to 20.11, up to 22.05, since 23.02
    "slurmstepd: error: Detected 1 oom-kill event(s) in step 7.0 cgroup. Some of your processes may have been killed",
    "slurmstepd: error: Detected 2 oom-kill event(s) in StepId=7.batch. Some of your processes may have been killed",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
    "srun: error: node1: task 0: Out Of Memory",
    # accounting, the second with several daemons on one machine
    "slurmstepd: error: StepId=7.0 exceeded memory limit (430460928 > 104857600), being killed",
    "slurmstepd-node1: error: Exceeded job memory limit",
]
OUT_OF_TIME = ["slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-02T03:04:05 DUE TO TIME LIMIT ***"]
OTHER = [
    "",
    "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-02T03:04:05 ***",
    "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-02T03:04:05 DUE TO PREEMPTION ***",
    "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-02T03:04:05 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***",
    "srun: error: node1: task 0: Killed",
    "srun: error: node1: task 0: Exited with exit code 1",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
]
NODES = """#!/bin/sh
echo "small 8000
all* 8000
all* 20000+"
"""


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """A job's folder of logs, and a function that adds one; SLURM knows nodes of 8000 and 20000 MB."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sinfo").write_text(NODES)
    (tmp_path / "bin/sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    largest_node.cache_clear()
    folder = tmp_path / "logs"
    folder.mkdir()

    def add(line):
        (folder / f"{len(list(folder.iterdir()))}.log").write_text(f"localrule train:\n{line}\nExiting\n")

    yield folder, add
    largest_node.cache_clear()


@pytest.mark.parametrize("line", OUT_OF_MEMORY)
def test_memory_doubles_after_each_end_for_want_of_it(logs, line):
    folder, add = logs
    asked = [memory_mb(4000, folder, None)]
    for _ in range(4):
        add(line)
        asked.append(memory_mb(4000, folder, None))
    assert asked == [4000, 8000, 16000, 20000, 20000]
    assert minutes(60, folder) == 60


@pytest.mark.parametrize("line", OUT_OF_TIME)
def test_time_doubles_after_each_end_for_want_of_it(logs, line):
    folder, add = logs
    asked = []
    for _ in range(4):
        add(line)
        asked.append(minutes(240, folder))
    assert asked == [480, 960, 1440, 1440]
    assert memory_mb(4000, folder, None) == 4000


@pytest.mark.parametrize("line", OTHER)
def test_after_any_other_end_a_job_asks_for_as_much_as_before(logs, line):
    folder, add = logs
    add(line)
    assert (memory_mb(4000, folder, None), minutes(240, folder)) == (4000, 240)
    assert (ended_for("memory", folder), ended_for("minutes", folder)) == (0, 0)


def test_nodes_of_another_partition_do_not_count(logs):
    folder, add = logs
    for _ in range(3):
        add(OUT_OF_MEMORY[0])
    assert memory_mb(4000, folder, "small") == 8000
    assert memory_mb(12000, folder, "small") == 12000, "never less than at first: SLURM says what it lacks"
    assert memory_mb(4000, folder, "unknown") == 16000, "four times, where no node is known"


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    largest_node.cache_clear()
    assert largest_node(None) is None
    largest_node.cache_clear()
    assert memory_mb(4000, tmp_path / "missing", None) == 4000


def test_folder_of_a_job():
    assert str(job_folder(None, "cost", [])) == ".snakemake/slurm_logs/rule_cost"
    wildcards = ["digits", "a/b", "0"]
    assert str(job_folder(queue.LOGS, "train", wildcards)) == ".snakemake/slurm_logs/rule_train/digits_a_b_0"
