"""Specifications of figures: what config/figures.yaml may say, and the jobs that figures need."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from support.configs import GRID
from support.snakemake import ROOT

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.planning.config import check_config
from dfshield.planning.figures import load_figures
from dfshield.planning.jobs import Jobs, checked_plan
from dfshield.planning.paths import LEDGER, Place
from dfshield.planning.plan import Plan
from dfshield.planning.tables import load_tables

FILE = ROOT / "config/figures.yaml"
SPECS = load_figures(FILE)
TABLES = load_tables(ROOT / "config/tables.yaml")
TOY = {"models": ["toy"], "threat": "linf:0.05"}
DIGITS = {"datasets": {"digits": {"models": ["cnn-s", "cnn-m", "resnet18"], "threat": "linf:2/16"}, "toy": TOY}}


def plan(**changes: object) -> Plan:
    return Plan.of(check_config(GRID | DIGITS | changes))


@pytest.mark.parametrize("name", SPECS)
def test_every_figure_fits_its_table_and_has_a_place_of_its_own(name: str) -> None:
    SPECS[name].check(TABLES[SPECS[name].table])
    assert name in plan().own_figures and name == SPECS[name].name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("front", {"layout": "pie"}, "layout"),
        ("front", {"x": None}, "x: layout scatter needs it"),
        ("front", {"series": "model"}, "series: layout scatter has none"),
        ("samples", {"y": "clean"}, "y: layout sheet has none"),
        ("epsilons", {"series": None}, "series: layout lines needs it"),
        ("medical-sources", {"series": "method"}, "name dataset or model"),
        ("front", {"colour": "red"}, "unknown key"),
        ("figure4", {"model": None}, "model: layout surface needs it"),
        ("figure4", {"model": 0}, "model"),
        ("front", {"model": 1}, "model: layout scatter has none"),
        ("survivors", {"y": None}, "y: layout bars needs it"),
        ("epsilons", {"y": None}, "y: layout lines needs it"),
        ("epsilons", {"compared": ["clean", "pgd10"]}, "compared: metrics of lines in place of y"),
        ("epsilons", {"series": "metric"}, "compared: lines of series metric or along attack.OPTION need it"),
        ("front", {"compared": ["clean"]}, "compared: metrics of lines in place of y"),
        ("transformation-figure6", {"y": "clean"}, "compared: metrics of lines in place of y"),
        ("transformation-figure6", {"x": "threat"}, "compared: metrics of lines in place of y, and not over threat"),
        ("transformation-figure6", {"series": "model"}, "compared: lines of series metric or along attack.OPTION"),
        ("transformation-figure7", {"series": "metric"}, "compared: metrics are the points along attack.eot"),
        ("transformation-figure7", {"compared": ["clean", "pgd-eot-1"]}, "clean is none"),
        ("transformation-figure7", {"compared": None, "y": "clean"}, "compared"),
        ("medical-sources", {"series": "metric"}, "name dataset or model"),
        ("figure1b", {"series": "model"}, "own: only a heat map whose rows are data sets"),
        ("front", {"own": "Ours"}, "own: only a heat map whose rows are data sets"),
        ("survivors", {"series": "model"}, "series: layout bars has none"),
    ],
)
def test_bad_specification_is_refused(tmp_path: Path, name: str, change: dict, message: str) -> None:
    values = yaml.safe_load(FILE.read_text())[name] | change
    (tmp_path / "figures.yaml").write_text(yaml.safe_dump({name: values}))
    with pytest.raises(InputError, match=f"figures.yaml: {name}: .*{message}"):
        load_figures(tmp_path / "figures.yaml")


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("front", "table24", "table24 sweeps tau, which only lines draw"),
        ("figure5", "table24", "x is 'data_share', table24 sweeps tau"),
        ("epsilons", "table14", "x is threat, and table14 has no evaluations at several"),
        ("medical-sources", "table11", "metric 'pgd10' is none of table11's: clean"),
        ("figure4", "table4", "metric 'sharpness' is none of table4's: clean, pgd10, autoattack"),
        ("transformation-figure6", "table23", "metric 'pgd-adaptive' is none of table23's"),
        ("survivors", "table14", "table14 compares threat models, which only lines draw"),
        ("front", "table15", "table15 compares threat models, which only lines draw"),
    ],
)
def test_a_table_that_lacks_what_a_figure_draws(name: str, table: str, message: str) -> None:
    spec = SPECS[name].model_copy(update={"table": table})
    with pytest.raises(InputError, match=f"figures: {name}: {message}"):
        spec.check(TABLES[table])


def test_a_surface_is_of_a_metric_of_surfaces() -> None:
    spec = SPECS["figure4"].model_copy(update={"y": "pgd10"})
    with pytest.raises(InputError, match="figures: figure4: y is 'pgd10', which is measured on no surface"):
        spec.check(TABLES["landscape"])


def test_a_figure_of_a_model_by_its_number_is_of_configs_that_have_it() -> None:
    three, one = plan(), plan(datasets={"digits": {"models": ["cnn-m"], "threat": "linf:2/16"}})
    drawn = {name: {cell.model for cell in three.figure_cells(name)} for name in ("figure4", "figure6", "figure7")}
    assert drawn == {"figure4": {"cnn-s"}, "figure6": {"cnn-m"}, "figure7": {"resnet18"}}
    assert {"figure4"} == {"figure4", "figure6", "figure7"} & set(one.own_figures)
    assert {cell.model for cell in one.figure_cells("figure4")} == {"cnn-m"}
    with pytest.raises(InputError, match=r"figures.yaml: figure6: the config has no cell of it in landscape"):
        one.figure_cells("figure6")


def test_methods_along_an_axis_have_no_lines(tmp_path: Path) -> None:
    values = yaml.safe_load(FILE.read_text())["transformation-figure6"]
    values |= {"series": "method", "compared": [], "y": "clean"}
    (tmp_path / "figures.yaml").write_text(yaml.safe_dump({"own": values}))
    with pytest.raises(InputError, match=r"methods are the points along defence.delta; name metric, dataset or model"):
        load_figures(tmp_path / "figures.yaml")


def test_metrics_of_several_units_have_no_common_axis() -> None:
    both = ("clean", "recall")
    spec = SPECS["figure5"].model_copy(update={"y": None, "compared": both, "series": "metric"})
    table = TABLES["figure5"].model_copy(update={"metrics": both})
    with pytest.raises(InputError, match="figures: figure5: compared metrics have several units"):
        spec.check(table)
    with pytest.raises(InputError, match=r"x is 'defence.steps', and table23 compares other values, too"):
        spec.model_copy(update={"x": "defence.steps", "compared": ("clean", "pgd10")}).check(TABLES["table23"])


def figure_of(folder: Path, **changes: object) -> Plan:
    """A plan whose one figure is Figure 4 of distribution transfer with changes."""
    values = yaml.safe_load(FILE.read_text())["transfer-figure4"] | changes
    (folder / "figures.yaml").write_text(yaml.safe_dump({"own": values}))
    return plan(figures=str(folder / "figures.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": "defence.delta"}, "x is defence.delta, and the defence of row 't = 0.1' has no number 'delta'"),
        ({"x": "defence.beta_schedule"}, "has no number 'beta_schedule'"),
        ({"table": "transfer-table1", "compared": ["clean"]}, "the defence of row 'Undefended' has no number 'time'"),
        (
            {"x": "attack.draws", "series": "method", "compared": ["pgd40-static", "pgd40"]},
            "x is attack.draws, and the attack of metric 'pgd40-static' has no number 'draws'",
        ),
    ],
)
def test_an_option_that_no_defence_or_attack_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, message: str
) -> None:
    """It is refused before any work, and left out where all figures are asked for."""
    made = figure_of(tmp_path, **changes)
    with pytest.raises(InputError, match=f"figures: own: .*{message}"):
        Jobs(made).target("figures/own")
    assert made.own_figures == []


def test_two_points_of_a_line_at_one_number(tmp_path: Path) -> None:
    """A later one would hide an earlier one."""
    made = figure_of(tmp_path, x="attack.steps", series="method", compared=["pgd40-static", "pgd40"])
    with pytest.raises(InputError, match=r"own: pgd40-static and pgd40 both have attack.steps 40; draw one"):
        Jobs(made).target("figures/own")
    made = figure_of(tmp_path, x="defence.steps")
    with pytest.raises(InputError, match=r"own: t = 0.1 and t = 0.47 both have defence.steps 4000; draw one"):
        made.figure_cells("own")


def test_own_is_a_row_of_the_table() -> None:
    with pytest.raises(InputError, match="figures: medical-sources: method 'Theirs' is no row of table1"):
        SPECS["medical-sources"].model_copy(update={"own": "Theirs"}).check(TABLES["table1"])


@pytest.mark.parametrize("key", ["figure1b"])
def test_rows_of_public_sets_have_the_titles_of_their_sets(key: str) -> None:
    """So that the row of own images has its place among them."""
    made = plan()
    for row in TABLES[key].rows:
        source = made.sources[row.source]
        if source.stage == "public":
            assert row.method == registry.DATASETS[source.name].title and row.needs in (source.name, None)


@pytest.mark.parametrize(("metric", "table"), [("clean", "table4"), ("recall", "table6")])
def test_bars_are_of_an_attack_alone(metric: str, table: str) -> None:
    spec = SPECS["survivors"].model_copy(update={"y": metric, "table": table})
    with pytest.raises(InputError, match=f"y is '{metric}', and bars are of the components of an attack; name a prot"):
        spec.check(TABLES[table])


def test_a_row_that_the_table_lacks() -> None:
    spec = SPECS["front"].model_copy(update={"methods": ("Ours", "Theirs")})
    with pytest.raises(InputError, match="figures: front: method 'Theirs' is no row of table4"):
        spec.check(TABLES["table4"])


def test_sizes_at_evaluation_are_of_models_of_one_training() -> None:
    """At every size the same student; at the size of its training the ledger of table 4."""
    made = plan()
    cells = [cell for cell in made.cells("epsilons") if cell.metric == "pgd10"]
    assert {cell.threat for cell in cells} == {f"linf:{k}/16" for k in (1, 2, 3, 4)}
    places = [Place.parse(LEDGER, cell.ledger) for cell in cells]
    assert {(place.recipe, place.train_threat) for place in places if place} == {
        ("none", "none"), ("dfshield", "linf-2-16"), ("plus", "linf-2-16"),
    }  # fmt: skip
    assert all(place and place.threat == cell.threat.replace(":", "-").replace("/", "-") for place, cell in
               zip(places, cells, strict=True))  # fmt: skip
    shared = {cell.ledger for cell in made.cells("table4")}
    assert {cell.threat for cell in cells if cell.ledger in shared} == {"linf:2/16"}
    for cell, place in zip(cells, places, strict=True):
        assert place and made.options("attack", place).threat == cell.threat


def test_the_jobs_of_a_figure_are_those_of_its_cells() -> None:
    made = plan()
    figure, table = Jobs(made), Jobs(made)
    figure.target("figures/front")
    table.target("table4")
    assert figure.jobs.keys() - table.jobs.keys() == {"results/figures/front.png"}
    lacking = table.jobs.keys() - figure.jobs.keys()  # table 4's third metric
    assert {table.jobs[path].stage for path in lacking} == {"table"}
    sheet = Jobs(made)
    sheet.target("figures/samples")
    stages = Counter(job.stage for job in sheet.jobs.values())
    assert stages == {"teacher": 1, "synthesize": 1, "merge": 1, "export": 1, "cotrain": 4, "figure": 1}
    inputs = sheet.jobs["results/figures/samples.png"].inputs
    assert sorted(Path(path).name for path in inputs) == ["data.h5"] * 2 + ["images.h5"] * 4
    assert {Place.parse("results/{run}/{dataset}/{model}/{source}/seed-{seed}/data.h5", path).source
            for path in inputs if path.endswith("data.h5")} == {"dss", "real"}  # fmt: skip


@pytest.mark.parametrize("target", ["figures", "results/figures/front.png", "results/figures/front.svg"])
def test_what_a_figure_needs_is_checked_before_any_work(target: str) -> None:
    config = check_config(GRID | DIGITS | {"synthesize": {"images": 100, "batch": 100}})
    with pytest.raises(InputError, match="holdout 200 leaves 0 of "):
        checked_plan(config, [], ROOT, [target])
    assert checked_plan(config, [], ROOT, ["results/run/digits/cnn-s/seed-0/teacher.safetensors"])


def test_a_figure_that_does_not_fit_a_configs_own_tables_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((ROOT / "config/tables.yaml").read_text())
    values["table4"]["metrics"] = ["clean", "pgd10"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"table4": values["table4"]}))
    config = check_config(GRID | DIGITS | {"tables": str(tmp_path / "own.yaml")})
    made = checked_plan(config, [], ROOT, ["figures"])
    assert made.own_figures == ["samples"]
    assert "front: metric 'autoattack' is none of table4's: clean, pgd10; it is left out" in capsys.readouterr().err


def test_points_are_a_figure_of_the_toy_alone_which_stands_in_for_nothing() -> None:
    made, without = plan(), plan(datasets={"digits": {"models": ["cnn-s"], "threat": "linf:2/16"}})
    assert "figure3" in made.own_figures and not {"figure3", "toy"} & {*without.own_figures, *without.own_tables}
    assert [(method, place.dataset, place.source) for method, place in made.figure_sets("figure3")] == [
        ("Real", "toy", "real"), ("Fixed", "toy", "fixed"), ("DSS", "toy", "dss"),
    ]  # fmt: skip
    assert {cell.dataset for table in made.own_tables if table != "toy" for cell in made.cells(table)} == {"digits"}


def test_the_jobs_of_an_embedding_have_every_models_sets_and_teacher() -> None:
    jobs = Jobs(plan())
    jobs.target("figures/figure8")
    inputs = jobs.jobs["results/figures/figure8.png"].inputs
    assert Counter(Path(path).name for path in inputs) == {"data.h5": 3 * 5, "teacher.safetensors": 3}
