"""Tables of attacks: what each attack takes; metrics that are evaluated at a threat model of their own."""

import re
from pathlib import Path

import pytest
import yaml
from support.configs import GRID, changed
from support.ledgers import make_ledger

from dfshield.core.errors import InputError
from dfshield.planning.config import check_config
from dfshield.planning.paths import LEDGER, Place, benchmark_of
from dfshield.planning.plan import Plan
from dfshield.report.content import timings
from dfshield.report.effort import efforts
from dfshield.report.table import build, texts
from dfshield.tools.verify import again

TABLE = {
    "title": "Some attacks",
    "caption": "For a test.",
    "paper": {"datasets": ["cifar10"], "models": ["resnet20"], "threat": "linf:4/255"},
    "layout": "attacks",
    "metrics": ["clean", "pgd1", "pgd10", "autoattack"],
    "by_metric": {"pgd1": {"demo": "linf:1", "full": "linf:10/255"}},
    "rows": [
        {"method": "Undefended", "source": "none", "recipe": "none"},
        {"method": "Ours", "source": "dss", "recipe": "dfshield"},
    ],
}
ROBUST = {"clean": 150, "pgd1": 10, "pgd10": 50, "autoattack": 20}


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Plan:
    """The plan of a table of attacks without robustness checks, in a folder of its own."""
    monkeypatch.chdir(folder)
    Path("own.yaml").write_text(yaml.safe_dump({"attacks": TABLE | changes}))
    return Plan.of(check_config(changed(GRID, "tables", "own.yaml") | {"checked": []}))


def measured(plan: Plan) -> list:
    """Rows of the table; Ours leaves ten images more than Undefended."""
    for cell in plan.cells("attacks"):
        if cell.metric == "clean":  # in the ledger of the first attack
            continue
        place = Place.parse(LEDGER, cell.ledger)
        assert place is not None
        robust = ROBUST[cell.metric] + (10 if cell.method == "Ours" else 0)
        Path(cell.ledger).parent.mkdir(parents=True)
        make_ledger(Path(cell.ledger), 150, robust, protocol=place.protocol, threat=cell.threat)
    return build(plan.cells("attacks"), plan.tables["attacks"])


def test_verify_finds_the_times_from_any_folder(tmp_path, monkeypatch):
    plan = made(tmp_path, monkeypatch)
    rows = measured(plan)
    for cell in plan.cells("attacks"):
        time(cell.ledger, "s\tmax_rss\n7\t1\n")
    expected = texts(plan, "attacks", rows)
    monkeypatch.chdir("/")
    assert again(plan, tmp_path / "results" / "attacks.csv", rows) == expected and "| 7.0 |" in expected[".md"]


def time(path: str, text: str) -> None:
    """A benchmark file of Snakemake for the job that made `path`."""
    benchmark_of(path).parent.mkdir(parents=True, exist_ok=True)
    benchmark_of(path).write_text(text)


def test_attacks_are_rows_with_passes_and_seconds(tmp_path, monkeypatch):
    plan = made(tmp_path, monkeypatch)
    rows = measured(plan)
    for cell, seconds in zip([c for c in plan.cells("attacks") if c.metric == "pgd10"], (10, 13), strict=True):
        time(cell.ledger, f"s\tmax_rss\n{seconds}\t1\n")
    text = texts(plan, "attacks", rows)
    effort = " | ".join(f"Effort {name}" for name in ("images", "passes per image", "seconds"))
    columns = f"| Attack | Accuracy Undefended | Accuracy Ours | {effort} |"
    assert columns in text[".md"] and "**Digits, CNN-S**" in text[".md"]
    lines = {line.split(" | ")[0]: line for line in text[".md"].splitlines() if line.startswith("| ")}
    assert re.fullmatch(r"\| Clean \| 75\.00 .* \| 75\.00 .* \| – \| – \| – \|", lines["| Clean"])
    assert re.fullmatch(r"\| PGD-1 \| 5\.00 .* \| 10\.00 .* \| 200 \| 2 \| – \|", lines["| PGD-1"])
    assert re.fullmatch(r"\| PGD-10 \| 25\.00 .* \| 30\.00 .* \| 200 \| 20 \| 11\.5 \|", lines["| PGD-10"])
    assert "& PGD-10" not in text[".tex"] and r"PGD-10 & 25.00 & 30.00 & 200 & 20 & 11.5 \\" in text[".tex"]
    assert "Digits: l∞ ε = 1 (PGD-1), l∞ ε = 8/255, n = 200" in text[".md"]


def test_passes_are_of_the_measured_share_of_survivors(tmp_path, monkeypatch):
    """AutoAttack: the pre-filter for all, then 2(1 + 9) + 3·9 runs of 100 and 5000 queries for survivors: 12.5 %."""
    plan = made(tmp_path, monkeypatch)
    own = efforts(plan, "attacks", measured(plan))
    assert own["digits", "cnn-s", "autoattack"].passes == pytest.approx(20 + 0.125 * (4700 + 5000))
    assert own["digits", "cnn-s", "autoattack"].seconds is None
    assert {name for _, _, name in own} == {"pgd1", "pgd10", "autoattack"}


def test_rows_of_another_config_and_damaged_times_are_refused(tmp_path, monkeypatch):
    plan = made(tmp_path, monkeypatch)
    rows = measured(plan)
    other = made(tmp_path, monkeypatch, rows=TABLE["rows"][:1])
    with pytest.raises(InputError, match="Ours by clean, seed 0, is no cell"):
        efforts(other, "attacks", rows)
    time(plan.cells("attacks")[-1].ledger, "no benchmark")
    with pytest.raises(InputError, match="no benchmark file of Snakemake"):
        efforts(plan, "attacks", rows)


def test_times_are_inputs_of_tables_of_attacks_alone(tmp_path, monkeypatch):
    plan = made(tmp_path, monkeypatch)
    ledgers = {cell.ledger for cell in plan.cells("attacks")}
    assert timings(plan, "attacks") == sorted(str(benchmark_of(path)) for path in ledgers) and len(ledgers) == 6
    assert timings(made(tmp_path, monkeypatch, layout="rows"), "attacks") == []


@pytest.mark.parametrize(("grid", "eps"), [("demo", "linf:1"), ("full", "linf:10/255")])
def test_a_metric_has_a_threat_model_of_its_own(tmp_path, monkeypatch, grid, eps):
    """The training's stays; clean accuracy, which is in the ledger of that attack, is read from there."""
    made(tmp_path, monkeypatch)
    plan = Plan.of(check_config(changed(changed(GRID, "tables", "own.yaml"), "grid", grid)))
    for cell in plan.cells("attacks"):
        place, own = Place.parse(LEDGER, cell.ledger), cell.metric == "pgd1"
        assert place is not None
        assert cell.threat == (eps if own else "linf:8/255")
        evaluated = eps if own or cell.metric == "clean" else "linf:8/255"
        assert place.threat == evaluated.replace(":", "-").replace("/", "-")
        assert place.train_threat == ("none" if cell.method == "Undefended" else "linf-8-255")
        assert plan.options("attack", place).threat == evaluated
