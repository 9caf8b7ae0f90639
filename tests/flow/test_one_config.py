"""One run, one config: jobs, a second run, lost records, use as a module."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.snakemake import TINY, environment, jobs, snakemake, workspace

from dfshield.planning import frozen
from dfshield.planning.config import check_config

pytestmark = pytest.mark.slow

TEACHER = "results/tiny/digits/cnn-s/seed-0/teacher.safetensors"
CONFIG = ("--configfile", "mine.yaml")


def write(folder: Path, **changes: object) -> dict:
    values = TINY | {"teacher": {"epochs": 2, "batch": 64}} | changes
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    return values


def said(run: subprocess.CompletedProcess[str]) -> str:
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has made a teacher."""
    folder = workspace(tmp_path_factory.mktemp("run"))
    write(folder)
    run = snakemake(folder, TEACHER, *CONFIG)
    assert run.returncode == 0, said(run)
    return folder


def job(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A job as an executor starts it on another machine: a process of Snakemake that reads the files anew."""
    words = ["--snakefile", "Snakefile", "--target-jobs", "teacher:run=tiny,dataset=digits,model=cnn-s,seed=0"]
    words += ["--allowed-rules", "teacher", "--cores", "1", "--force", "--no-hooks", "--nolock", "--nocolor"]
    words += ["--configfiles", "mine.yaml", "--mode", "remote", "-n", "-p"]
    command = [sys.executable, "-m", "snakemake", *words]
    kept = {name: value for name, value in environment().items() if name != frozen.RUN}
    return subprocess.run(command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False)


def test_a_job_follows_the_config_that_its_run_was_started_with(folder: Path) -> None:
    kept = frozen.kept(folder / "results/tiny")
    told = {frozen.RUN: f"tiny@{frozen.digest_of(kept)}"}
    write(folder, teacher={"epochs": 7, "batch": 64})
    assert "--epochs 2" in said(job(folder, **told))
    untold = job(folder)
    assert untold.returncode != 0
    assert untold.stderr.splitlines()[-1].startswith("snakemake: results/tiny/config.yaml: is not the config that")


def test_a_second_run_with_another_config_is_refused(folder: Path) -> None:
    before = frozen.kept(folder / "results/tiny")
    write(folder)
    holding = os.open(folder / "results/tiny/.lock", os.O_RDONLY)
    frozen.fcntl.flock(holding, frozen.fcntl.LOCK_SH)  # as a run that goes on does
    try:
        write(folder, teacher={"epochs": 7, "batch": 64})
        run = snakemake(folder, TEACHER, *CONFIG)
    finally:
        os.close(holding)
    assert run.returncode != 0
    assert "snakemake: results/tiny: a run of this name with another config is going on" in said(run)
    assert frozen.kept(folder / "results/tiny") == before


def test_what_an_edit_repeats_where_snakemakes_records_are_lost(folder: Path) -> None:
    """What outputs state of themselves decides then: they are made again for another config, and kept for theirs."""
    (folder / ".snakemake/metadata").rename(folder / "lost")
    write(folder, teacher={"epochs": 7, "batch": 64})
    run = snakemake(folder, TEACHER, "-n", *CONFIG)
    assert jobs(run) == {"teacher": 1}
    assert f"{TEACHER}: epochs is 2, the config says 7; it is made again" in said(run)
    write(folder, data_dir="elsewhere", attack={"limit": 5})
    assert jobs(snakemake(folder, TEACHER, "-n", *CONFIG)) == {}
    (folder / ".snakemake/metadata").rename(folder / "empty")
    (folder / "lost").rename(folder / ".snakemake/metadata")


def test_what_another_checkout_made_since_is_made_again(folder: Path) -> None:
    """Snakemake's records are of this folder's runs, and results may be shared."""
    write(folder)
    assert jobs(snakemake(folder, TEACHER, "-n", *CONFIG)) == {}
    (folder / TEACHER).rename(folder / "whole")
    (folder / TEACHER).write_bytes((folder / "whole").read_bytes()[:-8])
    assert jobs(snakemake(folder, TEACHER, "-n", *CONFIG)) == {"teacher": 1}
    (folder / "whole").replace(folder / TEACHER)


MODULE = """
configfile: "mine.yaml"
module dfshield:
    snakefile: "Snakefile"
    config: config
{}
use rule * from dfshield as its_*
"""


def test_as_a_module_it_has_the_config_that_it_is_given(folder: Path) -> None:
    (folder / "other.smk").write_text(MODULE.format(""))
    write(folder, name="other", teacher={"epochs": 1, "batch": 64})
    run = snakemake(folder, TEACHER.replace("tiny", "other"), "-s", "other.smk", "-p")
    assert jobs(run) == {"its_teacher": 1}
    assert yaml.safe_load((folder / "results/other/config.yaml").read_text())["teacher"]["epochs"] == 1
    assert "--epochs 1" in said(run)
    (folder / "other.smk").write_text(MODULE.format('    prefix: "sub"'))
    run = snakemake(folder, TEACHER, "-n", "-s", "other.smk")
    assert run.returncode != 0 and "snakemake: as a module this workflow takes no prefix:" in said(run)


def test_two_runs_do_not_write_one_hardened_model(folder: Path) -> None:
    entry = {"factory": "net.py:net", "weights": "net.pt", "input_shape": [1, 8, 8], "classes": 10, "mean": [0.3]}
    values = {"name": "b", "harden": {"mine": entry | {"std": [0.4], "threat": "linf:2/16"}}}
    check_config(values)
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/net.pt").write_text("weights")
    (folder / "net.py").write_text("def net(): ...\n")
    frozen.own(folder / "results/harden/mine", "a")
    run = snakemake(folder, "harden", "-n", *CONFIG)
    assert run.returncode != 0
    assert "snakemake: results/harden/mine: holds the model of the run 'a', and this run is 'b'" in said(run)
