"""The jobs that a plan has in one process are those of the workflow, each called with the same."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.snakemake import ROOT, TINY, snakemake, workspace

from dfshield.api import run
from dfshield.cli import meant, parser
from dfshield.planning.config import load_config
from dfshield.planning.jobs import Jobs
from dfshield.planning.plan import Plan

pytestmark = pytest.mark.slow
MODEL = """
from torch import nn


def build(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10)
    )
"""
OWN = {
    "factory": "mine.py:build",
    "arguments": {"width": 4},
    "weights": "mine.safetensors",
    "input_shape": [1, 8, 8],
    "classes": 10,
    "mean": [0.3],
    "std": [0.38],
    "threat": "linf:8/16",
    "keep_accuracy": True,
    "evaluation": {"file": "mine.npz", "limit": 10, "protocols": ["pgd10", "autoattack", "transfer"]},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    workspace(tmp_path)
    namespace: dict = {}
    exec(MODEL, namespace)
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "data").mkdir()
    torch.manual_seed(0)
    save_file(namespace["build"](4).state_dict(), tmp_path / "data/mine.safetensors")
    np.savez(tmp_path / "data/mine.npz", x=np.linspace(0, 1, 768).reshape(12, 8, 8, 1), y=np.arange(12) % 10)
    values = {key: value for key, value in TINY.items() if key != "datasets"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"name": "own", "harden": {"mine": OWN}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(value):
    """A value as the two ways can be compared: empty is none, a sequence a list."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value or None


def test_the_workflow_calls_the_stages_with_the_same(folder):
    printed = snakemake(folder, "harden", "-n", "-p", "--configfile", "mine.yaml")
    assert printed.returncode == 0, printed.stdout
    lines = [line for line in (printed.stdout + printed.stderr).splitlines() if " -m dfshield " in line]
    found = {}
    for line in lines:
        words = shlex.split(line.partition(" -m dfshield ")[2].partition(" 2>&1")[0])
        _, values = meant(parser(words).parse_args(words))
        found[str(values["out"])] = words[0], values
    plan = Plan.of(load_config(Path("mine.yaml")))
    jobs = Jobs(plan)
    jobs.target("harden")
    assert len(found) == len(jobs.jobs) == len(lines) > 12
    for job in jobs.jobs.values():
        own = run.given(plan, job)
        stage, values = found.pop(str(own["out"]))
        assert stage == job.stage
        values.pop("plan", None), own.pop("plan", None)
        for name in values.keys() | own.keys():
            one, other = values.get(name), own.get(name)
            if name == "options":
                apart = {"device", "threads"}
                one, other = one.model_dump(exclude=apart), other.model_dump(exclude=apart)
            assert plain(one) == plain(other), (job.stage, name)


def test_it_makes_what_is_missing(folder):
    plan = Plan.of(load_config(Path("mine.yaml")))
    run.run(plan, run.MAKING)
    jobs = Jobs(plan)
    jobs.target("harden")
    made = [job for job in jobs.jobs.values() if job.stage in run.MAKING]
    assert all(Path(job.output).is_file() for job in made) and len(made) == 6
    student = next(Path(job.output) for job in made if job.stage == "train")
    before = {job.output: Path(job.output).stat().st_mtime_ns for job in made}
    student.write_bytes(student.read_bytes()[:-5])  # damaged
    run.run(plan, run.MAKING)
    again = {path for path, then in before.items() if Path(path).stat().st_mtime_ns != then}
    assert {Path(path).name for path in again} == {"student.safetensors", "defence.safetensors"}
    assert ROOT not in student.absolute().parents
