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
from support.snakemake import ROOT, environment, workspace

from dfshield import registry
from dfshield.models.card import read_card
from dfshield.planning.config import load_config

GUIDE = (ROOT / "docs/developing.md").read_text(encoding="utf-8")
EXAMPLE = GUIDE.partition("## A worked example")[2].partition("## Tests and style")[0]


def block(before: str) -> str:
    """The first code block after a sentence of the example."""
    found = re.search(re.escape(before) + r"[^`]*?\n\n```\w+\n(.*?)```", EXAMPLE, re.DOTALL)
    assert found, f"the guide no longer says {before!r}, followed by code"
    return found[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The program with the guide's edits."""
    folder = workspace(tmp_path_factory.mktemp("guide"))
    shutil.copytree(ROOT / "dfshield", folder / "dfshield", ignore=shutil.ignore_patterns("__pycache__"))
    losses, entries = folder / "dfshield/training/losses.py", folder / "dfshield/registry.py"
    losses.write_text(losses.read_text() + "\n\n" + block("Append to `dfshield/training/losses.py`:"))
    text, inserted = entries.read_text(), block("Insert in `dfshield/registry.py` below `LOSSES = {`")
    assert text.count("\nLOSSES = {\n") == 1
    entries.write_text(text.replace("\nLOSSES = {\n", f"\nLOSSES = {{\n{inserted}"))
    for name in ("my-tables.yaml", "my.yaml"):
        (folder / name).write_text(block(f"`{name}`"))
    return folder


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
    assert "6 of 6 rows" in done.stdout  # three methods, two metrics
    rows = list(csv.DictReader((copy / "results/table99.csv").open()))
    assert {row["method"] for row in rows} == {"Undefended", "TRADES", "Brier"}
    assert "| Brier |" in (copy / "results/table99.md").read_text()
    students = copy / "results/mine/digits/cnn-s/dss"
    cards = {name: read_card(students / name / "linf-2-16/seed-0/student.safetensors") for name in ("trades", "brier")}
    assert {name: card.provenance["options"]["loss"] for name, card in cards.items()} == {
        "trades": "trades",
        "brier": "brier",
    }
    assert cards["brier"].tensors_sha256 != cards["trades"].tensors_sha256


@pytest.mark.parametrize("document", ["docs/developing.md", "docs/cost.md", "README.md"])
def test_files_that_are_named_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(
        r"(?:`|\]\()((?:dfshield|config|workflow|tests|docs|benchmarks|examples|profiles)/[\w/.]*)", text
    )
    assert len(named) > 3
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_page_on_plus_has_its_numbers():
    config, ours = load_config(ROOT / "config/config.yaml"), "that of Ours"
    everywhere, digits = config.recipes["plus"], config.datasets["digits"].by_recipe["plus"]
    made = {key: (everywhere.get(key, ours), value) for key, value in (everywhere | digits).items()}
    text = (ROOT / "docs/plus.md").read_text(encoding="utf-8").partition("\n## ")[0]
    said = {
        key: tuple(v if v == ours else yaml.safe_load(v) for v in pair)
        for key, *pair in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    }
    assert said == {key: pair for key, pair in made.items() if key != "loss"}


def test_registries_that_are_named_are_there():
    named = re.findall(r"\| `([A-Z]+)`", GUIDE.partition("## Adding")[2].partition("## A worked")[0])
    assert len(named) == 9
    assert all(isinstance(getattr(registry, name), dict) for name in named)
