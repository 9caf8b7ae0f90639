"""A small config, its figures, and how their drawn data is read."""

import csv
from collections.abc import Callable
from pathlib import Path

from support.snakemake import ROOT

from dfshield.evaluation.ledger import read_ledger
from dfshield.planning.config import check_config
from dfshield.planning.figures import load_figures
from dfshield.planning.plan import Plan

CONFIG = {
    "name": "drawn",
    "tables": str(ROOT / "config/tables.yaml"),
    "figures": str(ROOT / "config/figures.yaml"),
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:2/16"}},
    "seeds": [0, 1],
}
FIGURES = load_figures(ROOT / "config/figures.yaml")
OWN = Plan.of(check_config(CONFIG)).own_figures
"""Figures that a data set with one model has."""
Made = Callable[[str], tuple[Plan, Path]]


def read(path: Path) -> list[dict[str, str]]:
    """The drawn data of a figure."""
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def accuracies(plan: Plan, figure: str, metric: str) -> dict[tuple[str, ...], list[float]]:
    """Accuracies in percent, counted in the ledgers of a figure's cells, by method, threat and variant, a seed each."""
    found: dict[tuple[str, ...], list[float]] = {}
    for one in plan.figure_cells(figure):
        if one.metric == metric:
            own = read_ledger(Path(one.ledger))
            right = own.clean_prediction == own.label if metric == "clean" else ~own.broken
            found.setdefault((one.method, one.threat, one.variant), []).append(100 * float(right.mean()))
    return found
