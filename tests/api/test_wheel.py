"""What a user gets by `pip install`: the package alone, which hardens in an empty folder."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from support.snakemake import ROOT, environment

pytestmark = pytest.mark.slow
PARTS = ("pyproject.toml", "README.md", "LICENSE", "dfshield", "config")
USE = """
import torch
from torch import nn
import dfshield

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
settings = {
    "synthesize": {"images": 40, "batch": 20, "iterations": 2, "threads": 1},
    "train": {"epochs": 1, "batch": 10, "holdout": 10, "attack_steps": 1, "threads": 1},
}
result = dfshield.harden(network, (1, 8, 8), "linf:2/16", minutes=5, device="cpu", settings=settings)
print(dfshield.__file__, result.card)
"""


def test_the_wheel_hardens_in_an_empty_folder(tmp_path):
    tree, wheels, site, empty = (tmp_path / name for name in ("tree", "wheels", "site", "empty"))
    tree.mkdir()
    empty.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(wheels), "."]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert {f"dfshield/shipped/config/{name}.yaml" for name in ("defaults", "tables", "figures")} <= names
    assert not any(name.startswith(("tests/", "workflow/")) for name in names)
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=empty, env=environment(site), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    where, card = done.stdout.split()
    assert where.startswith(str(site)) and card == str(empty / "hardened/results/harden/model/MODEL_CARD.md")
