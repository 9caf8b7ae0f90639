"""The jobs that a plan has in one process are those of the workflow, each called with the same."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.own_model import bring_network, write_own_model
from support.snakemake import ROOT, snakemake, workspace

from dfshield.api import run
from dfshield.cli import meant, parser
from dfshield.planning.config import load_config
from dfshield.planning.jobs import Jobs
from dfshield.planning.plan import Plan

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    workspace(tmp_path)
    write_own_model(tmp_path, ["pgd10", "autoattack", "transfer"], keep_accuracy=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(value):
    """A value as the two ways can be compared: empty is none, a sequence a list."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value or None


@pytest.mark.parametrize("form", ["weights of a factory", "a file that brings its network"])
def test_the_workflow_calls_the_stages_with_the_same(folder, form):
    if form == "a file that brings its network":
        bring_network(folder)
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


def test_an_entry_without_a_factory(folder):
    """The student of a file that brings its network is that of the factory's weights but for the order of sums."""
    students = []
    for number in range(2):
        plan = Plan.of(load_config(Path("mine.yaml")))
        run.run(plan, run.MAKING)
        jobs = Jobs(plan)
        jobs.target("harden")
        (path,) = (Path(job.output) for job in jobs.jobs.values() if job.stage == "train")
        students.append((load_file(path), path.read_bytes()))
        if not number:
            bring_network(folder)
    one, other = (torch.cat([value.flatten().float() for _, value in sorted(s.items())]) for s, _ in students)
    assert students[0][1] != students[1][1]  # made anew: its card has another teacher
    assert torch.allclose(one, other, atol=1e-3)


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
