"""Run Snakemake in a folder of its own, for tests of the workflow."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "workflow", "profiles", "config", "envs")
# ε is half of the pixel range, so that AutoAttack is over after its first attack.
TINY = {
    "name": "tiny",
    "device": "cpu",
    "shards": 2,
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/16"}},
    "teacher": {"epochs": 4, "batch": 64},
    "synthesize": {"images": 200, "batch": 50, "iterations": 5, "labels": "random", "inversion": {"roll": 0}},
    "train": {"epochs": 1, "batch": 20, "aggregate": 2, "lr": 0.02, "holdout": 20, "attack_steps": 2},
    "cotrain": {
        "epochs": 1,
        "iterations": 2,
        "batch": 20,
        "generator_width": 0.05,
        "generator_epochs": 0,
        "attack_steps": 2,
        "kept_images": 100,
    },
    "attack": {"limit": 20},
    "certify": {"limit": 10, "n": 200},
    "detect": {"limit": 20, "steps": 5, "restarts": 1},
    "diversity": {"features": "pixels"},
    "landscape": {"points": 3, "limit": 20},
    "sources": {"public": {"public": "photographs", "images": 100}},
}


def workspace(folder: Path) -> Path:
    """A copy of the workflow (not of the package) in `folder`."""
    for name in PARTS:
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


def environment(package: Path = ROOT) -> dict[str, str]:
    """Variables for a process that takes the package from the folder `package`."""
    apart = ("DFSHIELD_DATA", "DFSHIELD_FORKSERVER", "SNAKEMAKE_PROFILE")
    kept = {name: value for name, value in os.environ.items() if name not in apart}
    return kept | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}


def snakemake(folder: Path, *words: str, package: Path = ROOT, cores: int = 2) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in `folder`, on two cores unless told otherwise."""
    command = [sys.executable, "-m", "snakemake", *words, "--cores", str(cores), "--nocolor"]
    return subprocess.run(command, cwd=folder, env=environment(package), capture_output=True, text=True, check=False)


def dfshield(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`."""
    command = [sys.executable, "-m", "dfshield", *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def cpu_seconds(work: Callable[[], subprocess.CompletedProcess[str]]) -> float:
    """CPU time, user and system, of the process that `work` runs and of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = work()
    assert run.returncode == 0, run.stdout + run.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def python(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in `folder`."""
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def jobs(run: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Number of jobs by rule, as Snakemake lists them; empty where nothing is to be done."""
    assert run.returncode == 0, run.stdout + run.stderr
    if "Nothing to be done" in run.stdout + run.stderr:
        return {}
    _, found, rest = (run.stdout + run.stderr).partition("Job stats:")
    assert found, run.stdout + run.stderr
    lines = re.findall(r"^(\w+) +(\d+)$", rest.partition("total")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in lines}
