"""The developer's guide: what it tells to write is written into a copy of the program and run."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.snakemake import ROOT, environment, jobs, snakemake, workspace

from dfshield import registry
from dfshield.evaluation.ledger import read_ledger
from dfshield.planning.config import load_config
from dfshield.planning.stages import STAGES

pytestmark = pytest.mark.slow
GUIDE = (ROOT / "docs/developing.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = GUIDE.partition("## A worked example")[2].partition("## Tests and style")[0]
NEW = ("dfshield/attacks/signs.py", "dfshield/defences/levels.py")
"""Modules of the example that are files of their own."""


def block(before: str) -> str:
    """The first code block after a sentence of the example."""
    found = re.search(re.escape(before) + r"[^`]*?\n\n```\w+\n(.*?)```", EXAMPLE, re.DOTALL)
    assert found, f"the guide no longer says {before!r}, followed by code"
    return found[1]


def insert(file: Path, opening: str, text: str) -> None:
    """Write `text` below the line that opens a registry."""
    code = file.read_text()
    assert code.count(f"\n{opening}\n") == 1
    file.write_text(code.replace(f"\n{opening}\n", f"\n{opening}\n{text}"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A workspace with a table built by the program as it is, and then the guide's edits in a copy of the program."""
    folder = workspace(tmp_path_factory.mktemp("guide"))
    shutil.copytree(ROOT / "dfshield", folder / "dfshield", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("my-tables.yaml", "my.yaml"):
        (folder / name).write_text(block(f"`{name}`"))
    before = yaml.safe_load((folder / "my.yaml").read_text())
    for key in ("protocols", "defences"):
        del before[key]
    tables = yaml.safe_load((folder / "my-tables.yaml").read_text())
    tables["table99"]["metrics"].remove("signs")
    tables["table99"]["rows"] = [row for row in tables["table99"]["rows"] if "defence" not in row]
    (folder / "before-tables.yaml").write_text(yaml.safe_dump(tables))
    (folder / "before.yaml").write_text(yaml.safe_dump(before | {"tables": "before-tables.yaml"}))
    first = snakemake(folder, "results/table99.csv", "--configfile", "before.yaml", package=folder)
    assert first.returncode == 0, first.stdout + first.stderr
    for name in NEW:
        (folder / name).write_text(block(f"`{name}`"))
    options = folder / "dfshield/options/attacks.py"
    options.write_text(options.read_text() + "\n\n" + block("`dfshield/options/attacks.py`"))
    for kind in ("attacks", "defences"):
        insert(folder / f"dfshield/registry/{kind}.py", f"{kind.upper()} = {{", block(f"below `{kind.upper()} = {{`"))
    return folder


def test_what_is_there_stays_as_it_is(copy):
    """The example's edits repeat nothing of what was built before them."""
    assert jobs(snakemake(copy, "results/table99.csv", "-n", "--configfile", "before.yaml", package=copy)) == {}


def test_only_the_examples_own_jobs_are_new(copy):
    run = snakemake(copy, "results/table99.csv", "-n", "--configfile", "my.yaml", package=copy)
    # by signs on three rows, and both protocols behind the defence
    assert jobs(run) == {"attack": 3 + 1, "table": 1}


def test_the_worked_example(copy):
    variables = environment(copy)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", block("Then:")],
        cwd=copy,
        env=variables | {"PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 rows" in done.stdout  # three methods, three metrics
    rows = {(row["method"], row["metric"]): row for row in csv.DictReader((copy / "results/table99.csv").open())}
    assert {method for method, _ in rows} == {"Undefended", "Levels", "TRADES"}
    assert rows["Levels", "signs"]["defence"] == "levels"
    assert "signs" in (copy / "results/table99.md").read_text()
    home = copy / "results/mine/digits/cnn-s/none/none/none/seed-0/eval"
    plain, defended = (read_ledger(home / f"{name}/signs@linf-2-16/ledger.h5") for name in ("none", "levels"))
    assert (plain.defence, defended.defence) == ("none", "levels")
    assert plain.options["draws"] == 10 and plain.options["side"] == 2
    assert plain.robust_accuracy < plain.clean_accuracy


def test_the_new_attack_is_in_the_help(copy):
    words = [sys.executable, "-m", "dfshield", "attack", "--attack", "signs", "--help"]
    text = subprocess.run(words, cwd=copy, env=environment(copy), capture_output=True, text=True, check=True).stdout
    assert "--draws" in text and "the worst of some corners of the ball" in text and "--restarts" not in text


def test_it_is_not_estimated(copy):
    words = [sys.executable, "-m", "dfshield", "estimate", "table99", "--config", "my.yaml"]
    text = subprocess.run(words, cwd=copy, env=environment(copy), capture_output=True, text=True, check=True).stdout
    assert "Not estimated, and so not in these figures: attack signs." in text


@pytest.mark.parametrize("document", ["docs/developing.md", "docs/cost.md", "docs/cluster.md", "README.md"])
def test_files_that_are_named_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(
        r"(?:`|\]\()((?:dfshield|config|workflow|tests|docs|benchmarks|examples|profiles)/[\w/.]*)", text
    )
    assert len(named) > 3
    missing = [name for name in named if not (ROOT / name).exists() and name not in NEW]
    assert not missing


def test_the_page_on_plus_has_its_numbers():
    config, ours = load_config(ROOT / "config/config.yaml"), "that of Ours"
    everywhere = dict(config.choices["recipes"]["plus"].options)
    digits = config.datasets["digits"].by_recipe["plus"]
    made = {key: (everywhere.get(key, ours), value) for key, value in (everywhere | digits).items()}
    text = (ROOT / "docs/plus.md").read_text(encoding="utf-8").partition("\n## ")[0]
    said = {
        key: tuple(v if v == ours else yaml.safe_load(v) for v in pair)
        for key, *pair in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    }
    assert said == {key: pair for key, pair in made.items() if key != "loss"}


def test_registries_that_are_named_are_there():
    adding = GUIDE.partition("## Adding")[2].partition("## A worked")[0]
    named = set(re.findall(r"\| `([A-Z]+)`", adding))
    assert len(named) == 12
    assert all(isinstance(getattr(registry, name), dict) for name in named)


def test_the_tables_of_folders_are_the_folders():
    folders = {path.name for path in (ROOT / "dfshield").iterdir() if (path / "__init__.py").is_file()}
    house = GUIDE.partition("| folder |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", house, re.MULTILINE)) == folders
    tree = README.partition("## The tree")[2]
    assert set(re.findall(r"`dfshield/(\w+)/`", tree)) == folders


def test_the_table_of_stages_is_the_stages():
    rows = re.findall(r"^\| `(\w+)` \| `dfshield/([\w/]+)\.py` \| (\S+) \|", GUIDE, re.MULTILINE)
    stages = {
        name: (stage.run.partition(":")[0], f"`{stage.options.__name__}`" if stage.options else "none")
        for name, stage in STAGES.items()
    }
    assert {name: (f"dfshield.{path.replace('/', '.')}", options) for name, path, options in rows} == stages


def test_the_picture_of_the_rules_is_the_workflow(tmp_path):
    """README draws the rules and what they wait for, as Snakemake does."""
    run = snakemake(workspace(tmp_path), "tables", "figures", "results/cost.csv", "--rulegraph", "mermaid-js")
    assert run.returncode == 0, run.stderr
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", run.stdout))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", run.stdout)}
    drawn = set(re.findall(r"^  (\w+) --> (\w+)$", README.partition("```mermaid")[2].partition("```")[0], re.MULTILINE))
    assert drawn == {edge for edge in edges if edge[1] not in ("tables", "figures")}
