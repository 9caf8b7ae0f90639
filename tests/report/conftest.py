"""Figures of small files of a run."""

from pathlib import Path

import pytest
from support.figures import CONFIG, Made
from support.runs import fake_run

from dfshield.planning.config import check_config
from dfshield.planning.plan import Plan
from dfshield.report.figure import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes the files of one figure and the figure itself, unless they are there."""
    monkeypatch.chdir(folder)

    def make(name: str) -> tuple[Plan, Path]:
        plan = Plan.of(check_config(CONFIG | {"name": name}))
        out = Path(f"results/figures/{name}.png")
        if not out.exists():
            fake_run(plan, plan.figure_cells(name) or plan.cells(plan.figures[name].table))
            run(plan, name, out)
        return plan, out

    return make
