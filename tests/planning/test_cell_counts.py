"""How many cells every table has: of the paper's grid and of the demo."""

import pytest
from support.configs import ROOT, paper, plan

from dfshield.registry.metrics import METRICS

DIVERSITY_METRICS = {name for name, metric in METRICS.items() if metric.evidence == "diversity"}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


FULL = {  # data sets x models x methods or swept values x metrics, and x threats where there are several
    "table1": 4 * 2 * 6 * 3,
    "table5": 3 * 3 * 2 * 3,
    "table11": 8 * 2,
    "table12": 4 * 2 * 6 * 3,
    "table14": 4 * 3 * 6 * 3,
    "table15": 4 * 3 * 6 * 3,
    "table18": 7 * 2 * 3 * 3,
    "figure1b": 4 * 5 * 2,  # each set is own, and public of the three others; and CIFAR-10
    "figure5": 3 * 6 * 2,
    "table4": 3 * 3 * 7 * 3,
    "table6": 1 * 8 * 7,
    "table7": 2 * 6 * 3,
    "table8": 3 * 4 * 2,
    "table9": 2 * 3 * 7,
    "table10": 2 * 3 * 7,
    "table21": 2 * 3 * 7,
    "table22": 4 * 7,
    "table16": 3 * 6 * 3,
    "table17": 3 * 6 * 3,
    "table19": 3 * 5 * 7,
    "table20": 3 * 5 * 7,
    "table23": 2 * 7 * 3,
    "table24": 2 * 11 * 3,
    "table25": 3 * 36 * 2,
    "table26": 3 * 36 * 2,
    "transfer-table1": 6 * 3,  # WRN-28-10 alone, as the config has no ResNet-18 for CIFAR-10
    "transfer-table2": 2 * 2,
    "transfer-table3": 2 * 6 * 5,
    "landscape": 3 * 4 * 3,
    "coefficients": 3 * 5 * 4,
}
DEMO = {
    "table1": 2 * 6 * 3,
    "table5": 2 * 3,
    "table11": 2,
    "table12": 2 * 6 * 3,
    "table14": 3 * (2 * 2 + 4) * 3,  # the four rivals for the smallest model alone
    "table15": 3 * (2 * 2 + 4) * 3,
    "table18": 2 * 3 * 3,
    "figure5": 4 * 2,
    "table4": 2 * 8 * 3,
    "table6": 1 * (8 + 4) * 7,  # with the baselines' images
    "table7": 6 * 3,
    "table8": 2 * 4 * 2,
    "table9": 7,
    "table10": 7,
    "table21": 7,
    "table22": 7,
    "static-adaptive": 23 * 6,
    "certified": 3 * 4 + 2 * 3 * 3,  # Gaussian noise in l2; Laplace and uniform in l1, where AutoAttack has no version
    "detection": 4 * 6,
    "landscape": 2 * 4 * 3,
    "coefficients": 2 * 5 * 4,
    "transformation-table1": 3 * 2,
    "transformation-table2": 3 * 4 - 1,  # as below
    "transformation-table3": 7 * 3 - 1,
    "transformation-table4": 2 * 2,
    "transformation-table5": 2 * 4,
    "figure1b": 2 * 2,
    "transformation-steps": 3 * 3,
    "transformation-delta": 3 * 3,
    "transformation-draws": 2 * 5,
    "transformation-attacks": 15,
    "transfer-table1": 6 * 3,
    "transfer-table2": 2,
    "transfer-table3": 6 * 5,
    "transfer-epsilons": 3 * 2 * 3,
    "transfer-times": 3 * 3,
    "attacks": 4 * 23 - 1,  # the teacher is no surrogate for itself
    "table16": 2 * 6 * 3,
    "table17": 2 * 6 * 3,
    "table19": 2 * 5 * 7,
    "table20": 2 * 5 * 7,
    "table23": 3 * 3,
    "table24": 2 * 3 * 3,  # without the filter, too
    "table25": 9 * 2,
    "table26": 9 * 2,
}
BOTH = {"landscape", "coefficients"} | {f"table{number}" for number in (1, 4, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20)}


@pytest.mark.parametrize("table", FULL)
def test_cells_of_the_papers_grid(table):
    made = paper()
    cells = made.cells(table)
    assert len(cells) == FULL[table] * len(made.config.seeds)
    assert len(set(cells)) == len(cells)
    attacked = [cell.ledger for cell in cells if cell.metric in ("pgd10", "autoattack")]
    assert len(set(attacked)) == len(attacked)
    clean = {cell.ledger for cell in cells if cell.metric == "clean"}
    if table != "table11" and not table.startswith("transfer-"):  # which have neither attack
        assert clean <= set(attacked)  # clean accuracy is read from an attack's ledger
    compared = [cell.ledger for cell in cells if cell.metric in DIVERSITY_METRICS]
    assert len(set(compared)) * 4 == len(compared) and not set(compared) & set(attacked)
    assert table in made.own_tables


@pytest.mark.parametrize("table", DEMO)
def test_cells_of_the_demo(table):
    cells = plan(datasets__digits__models=["cnn-s", "cnn-m"]).cells(table)
    assert len(cells) == DEMO[table]
    assert {cell.dataset for cell in cells} == {"digits"}
    assert {cell.model for cell in cells} == ({"cnn-s", "cnn-m"} if table in BOTH else {"cnn-s"})
