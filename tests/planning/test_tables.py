"""Specifications of tables: what config/tables.yaml may say."""

from pathlib import Path

import pytest
import yaml
from support.configs import GRID

from dfshield.core.errors import InputError
from dfshield.core.validation import build
from dfshield.planning.cells import Cell, swept, variant
from dfshield.planning.config import check_config
from dfshield.planning.plan import Plan
from dfshield.planning.tables import TableSpec, load_tables
from dfshield.registry import DIVERSITY_METRICS, METRICS, metric

FILE = Path(__file__).parents[2] / "config" / "tables.yaml"
SPECS = load_tables(FILE)


def test_variant_and_back() -> None:
    assert variant({"aggregate": 20}) == "B=20"
    assert variant({"lambda1": 0.1, "lambda2": 10}) == "lambda1=0.1,lambda2=10"
    assert swept("lambda1=0.1,lambda2=10") == {"lambda1": 0.1, "lambda2": 10}
    assert swept("") == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layout: rows", "layout: pile", "layout"),
        ("number: 4", "number: 5", "must be table5"),
        ("recipe: dfshield}", "recipe: dfshield, colour: red}", "unknown key"),
        ("layout: matrix", "layout: sweep", "takes 1 swept"),
        ("tau: {demo", "taus: {demo", "not a training option"),
        ("gain_of: autoattack", "gain_of: jsd", "gain_of: 'jsd' is none of the metrics"),
        ("marks: {Data-free: true}", "marks: {}", "needs the same marks"),
        ("layout: rows", "layout: formulas", "a table needs some, and one of formulas has none"),
        ("recipe: dfard}", "recipe: std}", "'std' is none of dast, dfme, ait, dfard, which have formulas"),
        ('threats: {demo: ["l2:8/16"], full: ["l2:128/255"]}', "threats:", "belongs in paper.threat or"),
    ],
)
def test_bad_specification_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = FILE.read_text()
    assert old in text
    (tmp_path / "tables.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_tables(tmp_path / "tables.yaml")


def test_clean_accuracy_is_of_the_first_attack() -> None:
    expected = {
        "table4": "pgd10",
        "table6": "pgd10",
        "table8": "autoattack",
        "table11": "clean",
        "table25": "autoattack",
    }
    assert {key: SPECS[key].clean_from for key in expected} == expected
    own = SPECS["table4"].model_copy(update={"metrics": ("recall", "clean", "latent", "pgd10")})
    assert own.clean_from == "latent"


def test_metrics_of_tables_are_registered_and_others_are_protocols() -> None:
    assert {name for spec in SPECS.values() for name in spec.metrics} <= set(METRICS)
    assert set(DIVERSITY_METRICS) == {"precision", "recall", "density", "coverage", "ndb", "jsd"}
    own = metric("own-attack")
    assert (own.title, own.unit, own.decimals, own.evidence) == ("own-attack", "%", 2, "ledger")


@pytest.mark.parametrize(("name", "kind"), [("clean", "ledger"), ("latent", "ledger"), ("ndb", "diversity")])
def test_evidence_of_a_cell(name: str, kind: str) -> None:
    assert Cell("table4", "digits", "cnn-s", "Ours", "", "none", "linf:8/255", name, 0, "file").evidence == kind


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("table4", "Table 4. Robustness without training data"),
        ("figure5", "Figure 5. Number of synthetic samples"),
        ("losses", "Every training loss"),
    ],
)
def test_the_papers_tables_have_its_numbers_and_others_have_none(key: str, heading: str) -> None:
    spec = SPECS[key]
    assert (spec.key, spec.heading) == (key, heading)


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("table9", {"groups": {"Far": ["genattack", "spsa"]}}, "side by side"),
        ("table9", {"groups": {"One": ["spsa"], "Other": ["spsa"]}}, "side by side"),
        ("table9", {"groups": {"None": ["jsd"]}}, "'jsd' is none of the metrics"),
        ("table4", {"groups": {"PGD": ["pgd10"]}}, "layout rows has none"),
        ("table9", {"clean_of": "pgd20"}, "clean_of: 'pgd20' is none of the metrics"),
        ("table10", {"by_metric": {"latent": {"demo": "linf:1", "full": "linf:1"}}}, "by_metric: 'latent' is none"),
        ("table10", {"by_metric": {"pgd1": {"demo": "linf:1"}}}, "by_metric.pgd1.full"),
        ("table14", {"by_metric": {"pgd10": {"demo": "l2:1", "full": "l2:1"}}}, "at each of them"),
    ],
)
def test_bad_metrics_of_a_table_are_refused(key: str, changes: dict, message: str) -> None:
    given = SPECS[key].model_dump(mode="json", exclude_defaults=True) | changes
    with pytest.raises(InputError, match=message):
        build(TableSpec, given, key)


def test_headings_span_the_metrics_of_their_groups() -> None:
    assert SPECS["table9"].headings == [("", 1), ("Gradient-free", 3), ("Adaptive", 3)]
    assert SPECS["table21"].headings == [("", 3), ("Modified attack", 4)]
    assert SPECS["table19"].headings == []
    assert SPECS["table9"].clean_from == "autoattack"
    assert (SPECS["table22"].papers_threats_of("latent"), SPECS["table22"].papers_threats_of("pgd10")) == (
        ("linf:10/255",),
        ("linf:8/255",),
    )


def distances(tmp_path: Path, metrics: str) -> Plan:
    """The plan of a table that measures `metrics`."""
    (tmp_path / "tables.yaml").write_text(
        f"own: {{title: t, caption: c, layout: rows, metrics: [{metrics}], "
        "paper: {datasets: [cifar10], models: [resnet20], threat: 'linf:4/255'}, "
        "rows: [{method: Undefended, source: none, recipe: none}]}\n"
    )
    own = {"tables": str(tmp_path / "tables.yaml"), "protocols": {"far": {"attack": "cw", "threat": "l2:0.5"}}}
    return Plan.of(check_config(GRID | own))


def test_a_distance_is_read_from_its_protocols_ledger(tmp_path: Path) -> None:
    made = distances(tmp_path, "clean, median-cw, largest-cw, cw, median-far")
    cells = {cell.metric: cell for cell in made.cells("own")}
    assert len({cells[name].ledger for name in ("clean", "median-cw", "largest-cw", "cw")}) == 1
    assert cells["cw"].ledger.endswith("/eval/none/cw@linf-8-255/ledger.h5")
    assert cells["median-far"].ledger.endswith("/eval/none/far@l2-0.5/ledger.h5")
    assert cells["median-far"].threat == "l2:0.5"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("median-pgd10", "'median-pgd10' needs distances, which pgd does not look for; protocols that do are deepfool"),
        ("largest-none-such", "'largest-none-such' is no protocol of the config"),
    ],
)
def test_a_distance_under_another_protocol_is_refused(tmp_path: Path, metric: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        distances(tmp_path, metric).cells("own")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cost", "report", "robustness-checks"])
def test_a_table_by_the_name_of_another_result_is_refused(tmp_path: Path, name: str) -> None:
    own = yaml.safe_load(FILE.read_text())["losses"]
    (tmp_path / "tables.yaml").write_text(yaml.safe_dump({name: own}))
    with pytest.raises(InputError, match=f"{name}: results/{name} is made by the stage of that name"):
        load_tables(tmp_path / "tables.yaml")
