"""The workflow on a real cluster: SLURM with two nodes, jobs that are cancelled, signalled, lost, short of memory.

Whatever happens, the files are those of a run on one machine, byte for byte.
"""

import hashlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import support.slurm
import torch
import yaml
from support.slurm import Cluster, cluster, needed, wait_until
from support.snakemake import TINY, environment, workspace

from dfshield.planning.queue import largest_node

pytestmark = pytest.mark.slow

TABLE = "results/table99.csv"
CONFIG = ("--configfile", "mine.yaml")
# Training is long enough to be disturbed after its first epoch.
VALUES = TINY | {"tables": "tables.yaml", "train": TINY["train"] | {"epochs": 40}}
TABLES = {
    "table99": {
        "number": 99,
        "title": "Two losses",
        "caption": "Small.",
        "paper": {"datasets": ["cifar10"], "models": ["resnet20"], "threat": "linf:4/255"},
        "layout": "rows",
        "metrics": ["clean", "pgd10"],
        "rows": [
            {"method": "TRADES", "source": "dss", "recipe": "trades"},
            {"method": "Ours", "source": "dss", "recipe": "dfshield"},
        ],
    }
}
DATA = "results/tiny/digits/cnn-s/dss/seed-0/data.h5"
LITTLE = """
import dataclasses
STAGES["merge"] = dataclasses.replace(STAGES["merge"], memory_mb=100)
"""


def made(folder: Path) -> Path:
    """A workspace with the tiny config and its table."""
    folder.mkdir()
    workspace(folder)
    (folder / "mine.yaml").write_text(yaml.safe_dump(VALUES))
    (folder / "tables.yaml").write_text(yaml.safe_dump(TABLES))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below results/, by path."""
    files = sorted(path for path in (folder / "results").rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    needed()
    with cluster() as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A finished run on the cluster, and the hashes of the same run on this machine, beside it."""
    home = tmp_path_factory.mktemp("slurm")
    command = [sys.executable, "-m", "snakemake", TABLE, *CONFIG, "--cores", "1"]
    here = subprocess.Popen(
        command, cwd=made(home / "local"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    slurm.runs.append(here)
    run = slurm.snakemake(made(home / "cluster"), TABLE, *CONFIG)
    told = here.communicate()[0].decode()
    assert here.returncode == 0, told
    slurm.ends_well(run)
    return home / "cluster", hashes(home / "local")


def test_without_slurm_the_tests_are_skipped_but_not_where_it_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.slurm, "COMMANDS", ("sh", "no-such-command"))
    monkeypatch.delenv("DFSHIELD_NEEDS_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^SLURM: this machine lacks no-such-command"):
        needed()
    monkeypatch.setenv("DFSHIELD_NEEDS_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match=r"^SLURM: this machine lacks no-such-command"):
        needed()


def test_the_files_are_those_of_one_machine(slurm: Cluster, undisturbed: tuple[Path, dict[str, str]]) -> None:
    folder, expected = undisturbed
    assert hashes(folder) == expected
    assert len(expected) > 12
    jobs = slurm.slurm("scontrol", "--oneliner", "show", "jobs").splitlines()
    assert len(jobs) == 9 and not any("gpu" in job for job in jobs), "device: cpu asks for no GPU"


def test_jobs_cancelled_signalled_and_lost(
    slurm: Cluster, undisturbed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """In one run: the config is edited, a job cancelled, one signalled, a node lost, and Snakemake itself killed."""
    folder = made(tmp_path / "disturbed")
    before = set(slurm.slurm("squeue", "-h", "-t", "all", "-o", "%i").split())
    run = slurm.snakemake(folder, TABLE, *CONFIG)
    slurm.running("teacher")
    edited = VALUES | {"train": VALUES["train"] | {"epochs": 1}, "synthesize": VALUES["synthesize"] | {"iterations": 2}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(edited))  # for the next run, while this one goes on
    slurm.slurm("scancel", slurm.running("synthesize", 2)[0])
    slurm.running("train", 2)
    epochs = "results/.state/training-*/epoch.pt"
    wait_until(lambda: len(list(folder.glob(epochs))) == 2, 120, slurm.said)
    nodes = dict(line.split() for line in slurm.jobs("train", "%N %i", "-t", "RUNNING"))
    slurm.slurm("scancel", "--full", "--signal=USR1", nodes["node1"])
    slurm.lose("node2")
    slurm.running("attack")
    run.send_signal(signal.SIGKILL)
    run.wait()
    (folder / "mine.yaml").write_text(yaml.safe_dump(VALUES))
    slurm.ends_well(slurm.snakemake(folder, "--unlock", *CONFIG))
    slurm.ends_well(slurm.snakemake(folder, TABLE, *CONFIG))
    assert hashes(folder) == undisturbed[1]
    assert not list((folder / "results/.state").iterdir())

    logs = folder / ".snakemake/slurm_logs"
    (signalled,) = logs.glob(f"rule_train/*/{nodes['node1']}.log")
    # srun is signalled as well, and now and then ends its step, by SIGTERM, before SIGUSR1 reaches the program.
    stopped = r"stopped by SIG(USR1|TERM); the same command goes on after epoch \d+ of 40\n"
    assert re.search(stopped, signalled.read_text())
    lost = slurm.slurm("scontrol", "show", "job", nodes["node2"])
    assert "Restarts=1" in lost and "NodeList=node1" in lost, "SLURM has it run again on the other node"
    lines = (line.split() for line in slurm.jobs("synthesize", "%i %T %m", "-t", "all"))
    own = [words[1:] for words in lines if words[0] not in before]
    assert sorted(own) == [["CANCELLED", "4000M"], ["COMPLETED", "4000M"], ["COMPLETED", "4000M"]]


def test_memory_doubles_after_a_job_ran_out_of_it(
    slurm: Cluster, undisturbed: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = undisturbed
    snakefile = folder / "Snakefile"
    anchor = 'include: "workflow/rules/common.smk"\n'
    assert snakefile.read_text().count(anchor) == 1
    snakefile.write_text(snakefile.read_text().replace(anchor, anchor + LITTLE))
    before = set(slurm.jobs("merge", "%i", "-t", "all"))
    slurm.ends_well(slurm.snakemake(folder, DATA, *CONFIG, "--forcerun", "merge"))
    assert hashes(folder)[DATA] == expected[DATA]
    lines = (line.split() for line in slurm.jobs("merge", "%i %T %m", "-t", "all"))
    ends = [words[1:] for words in lines if words[0] not in before]
    assert len(ends) > 1
    assert ends == [["FAILED", f"{100 * 2**i}M"] for i in range(len(ends) - 1)] + [
        ["COMPLETED", f"{100 * 2 ** (len(ends) - 1)}M"]
    ]
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    largest_node.cache_clear()
    assert (largest_node(None), largest_node("all"), largest_node("other")) == (16000, 16000, None)
    largest_node.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a GPU")
def test_a_gpu_that_the_queue_gives_and_pytorch_does_not_see_is_refused(slurm: Cluster, tmp_path: Path) -> None:
    folder = made(tmp_path / "gpu")
    own = ("--config", "device=auto", "name=gpu")
    run = slurm.snakemake(
        folder, "results/gpu/digits/cnn-s/seed-0/teacher.safetensors", "--retries", "0", *CONFIG, *own
    )
    assert run.wait(120) == 1
    (log,) = (folder / ".snakemake/slurm_logs/rule_teacher/gpu_digits_cnn-s_0").glob("*.log")
    assert "device: CUDA_VISIBLE_DEVICES is 0, but PyTorch" in log.read_text()
    assert "TresPerJob=gres:gpu:1" in slurm.slurm("scontrol", "show", "job", log.stem)
