"""A table and all that it is made from."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.edits import CONFIG
from support.runs import fake_run

from dfshield.planning import frozen
from dfshield.planning.config import check_config
from dfshield.planning.plan import Plan
from dfshield.report.table import run as make_table


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the files of one table and the table itself."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, **changes: object) -> Path:
        plan = Plan.of(check_config(CONFIG | changes))
        fake_run(plan, plan.cells(name))
        frozen.keep(frozen.folder_of(plan.config.name), frozen.texts_of(plan.config))
        out = Path("results") / f"{name}.csv"
        make_table(plan, name, out)
        assert out.with_suffix(".md").is_file() and out.with_suffix(".tex").is_file()
        return out

    return make
