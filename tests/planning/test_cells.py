"""The cells of every table, and the files that they are read from."""

import pytest
from support.configs import GRID, MINE, ROOT, changed, job, paper, plan

from dfshield.core.errors import InputError
from dfshield.planning.paths import (
    CERTIFICATES,
    DETECTION,
    DIVERSITY,
    IMAGES,
    IMAGES_DIVERSITY,
    LANDSCAPE,
    LEDGER,
    Place,
)
from dfshield.planning.plan import Plan
from dfshield.registry.metrics import METRICS

DIVERSITY_METRICS = {name for name, metric in METRICS.items() if metric.evidence == "diversity"}


CERTIFIED = {"l2": (0.1, 0.25, 0.5), "l1": (0.25, 0.5, 1)}
"""Radii of the table of certificates."""
TWO = {"datasets__digits__models": ["cnn-s", "cnn-m"]}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_choice_of_methods_cuts_the_tables_that_have_them_all():
    made = plan(methods=["undefended", "Ours", "original"])
    assert list(dict.fromkeys(cell.method for cell in made.cells("table4"))) == ["Undefended", "Ours", "Original"]
    assert len(made.cells("table8")) == len(plan().cells("table8"))
    with pytest.raises(InputError, match="methods: no table has rows for all of ours, dats; those of table4 are unde"):
        plan(methods=["ours", "dats"]).cells("table4")


def test_every_row_of_table_4():
    cells = {(cell.method, cell.metric): cell for cell in plan().cells("table4")}
    rivals = {"DaST": "dast", "DFME": "dfme", "AIT": "ait", "DFARD": "dfard"}
    assert list(dict.fromkeys(method for method, _ in cells)) == ["Undefended", *rivals, "Ours", "Plus", "Original"]
    for method, recipe in rivals.items():
        trained = f"results/run/digits/cnn-s/none/{recipe}/linf-8-255/seed-0"
        assert cells[method, "pgd10"].ledger == f"{trained}/eval/none/pgd10@linf-8-255/ledger.h5"
    assert "/none/none/none/seed-0/" in cells["Undefended", "clean"].ledger
    assert "/dss/dfshield/linf-8-255/seed-0/eval/none/pgd10@" in cells["Ours", "pgd10"].ledger
    assert "/dss/plus/linf-8-255/seed-0/" in cells["Plus", "autoattack"].ledger
    assert "/real/std/" in cells["Original", "autoattack"].ledger
    assert "/autoattack@" in cells["Ours", "autoattack"].ledger


def test_sizes_of_perturbations_have_students_of_their_own():
    """Training and evaluation at each size; where it is the data set's own, the files are table 4's."""
    own = changed(GRID, "datasets/digits/threat", "linf:2/16")
    found = {(c.method, c.threat): c.ledger for c in plan(own, **TWO).cells("table14") if c.metric == "pgd10"}
    assert {threat for _, threat in found} == {"linf:1/16", "linf:2/16", "linf:3/16"}
    trained = "results/run/digits/cnn-m/dss/dfshield/linf-3-16/seed-0"
    assert found["Ours", "linf:3/16"] == f"{trained}/eval/none/pgd10@linf-3-16/ledger.h5"
    table4 = {c.ledger for c in plan(own, **TWO).cells("table4")}
    assert {threat for (_, threat), ledger in found.items() if ledger in table4} == {"linf:2/16"}
    made = plan(own)
    assert made.threats["digits", "cnn-s"] == {
        **{"linf-2-16": "linf:2/16", "l2-8-16": "l2:8/16"},
        **{"linf-1-16": "linf:1/16", "linf-3-16": "linf:3/16", "linf-4-16": "linf:4/16"},
        **{"linf-1": "linf:1", "linf-5-16": "linf:5/16", "linf-5-32": "linf:5/32"},  # of single metrics
        **{f"{norm}-{radius}": f"{norm}:{radius}" for norm, radii in CERTIFIED.items() for radius in radii},
    }
    assert job(made, "train", "digits", "cnn-s", recipe="dfshield", train_threat="l2-8-16").threat == "l2:8/16"
    assert job(made, "cotrain", "digits", "cnn-s", recipe="dast", train_threat="linf-1-16").threat == "linf:1/16"
    assert job(made, "attack", "digits", "cnn-s", protocol="pgd10", threat="linf-3-16").threat == "linf:3/16"


def test_the_papers_data_sets_have_the_papers_threats_at_any_scale():
    small = {"name": "x", "datasets": {"cifar10": {"models": ["resnet20"], "threat": "linf:8/255"}}}
    epsilons = {f"linf:{eps}/255" for eps in (2, 4, 6, 8)}
    assert {cell.threat for cell in plan(small).cells("table15")} == epsilons
    assert {cell.threat for cell in plan(small).cells("table5")} == {"l2:128/255"}
    assert {cell.threat for cell in plan(small).cells("table14")} == {"linf:1/16", "linf:2/16", "linf:3/16"}
    assert {cell.threat for cell in plan(small, grid="full").cells("table14")} == epsilons  # a stand-in for SVHN


def test_public_sources():
    made = plan(sources={"public": {"public": "photographs", "images": 70}}, seeds=[3])
    options = job(made, "public", "digits", "cnn-s", source="public", seed=3)
    assert (options.dataset, options.images, options.seed) == ("photographs", 70, 3)
    assert job(plan(), "public", "digits", "cnn-s", source="public").dataset == "cifar10"  # the paper's
    cells = {(cell.method, cell.metric): cell.ledger for cell in made.cells("table1")}
    assert "/cnn-s/public/std-soft/linf-8-255/seed-3/eval/none/pgd10@" in cells["Public", "pgd10"]


def test_a_table_without_a_stand_in_is_for_its_own_data_alone():
    assert "transformation-table6" not in plan().own_tables
    with pytest.raises(InputError, match="transformation-table6: the config's data sets and models have no cell"):
        plan().cells("transformation-table6")
    assert not [table for table in paper().own_tables if table.startswith("transformation")]  # no ResNet-18 there


def test_a_defended_teacher_is_attacked_from_the_teacher_itself():
    found = {cell.method for cell in plan().cells("transformation-table3") if cell.metric == "transfer"}
    assert found == {"Original", "TRADES", "Quilting", "Thermometer", "SAP", "Transformed"}


def test_a_protocol_that_goes_through_another_defence_is_refused_before_any_job():
    made = plan()
    place = made.place("digits", "cnn-s", defence="tte", protocol="bpda-tanh", threat="linf-8-255")
    why = r"protocols\.bpda-tanh behind tte: through backward=tanh: defence tte leaves none to an attack"
    with pytest.raises(InputError, match=why):
        made.options("attack", place)
    with pytest.raises(InputError, match=r"protocols\.bpda-tanh behind none: through backward=tanh: there is no def"):
        made.options("attack", place.at(defence="none"))
    assert made.options("attack", place.at(defence="adversarial-transformation")).through == ("backward=tanh",)


def test_a_table_of_formulas_has_no_cells():
    assert plan().cells("table2") == [] and "table2" in plan().own_tables


def test_a_row_beyond_the_paper_is_in_its_grid_only_by_name():
    assert "Plus" not in {cell.method for cell in paper().cells("table4")}
    named = Plan.of(paper().config.model_copy(update={"methods": ("ours", "plus")}))
    assert [row.method for row in named.rows(named.tables["table4"])] == ["Ours", "Plus"]
    ours, plus = (
        job(named, "train", "cifar10", "resnet56", recipe=recipe).model_dump() for recipe in ("dfshield", "plus")
    )
    changed = {"contrast", "noise", "translate", "weight_decay", "average"}
    assert {key for key in ours if ours[key] != plus[key]} == changed


def test_every_row_of_table_6():
    """Diversity is the training set's, whatever is trained on it; the split and the bins' seed are the config's."""
    made = plan(seeds=[4, 5], datasets__digits__diversity={"split": "dev"}, diversity={"bins": 7})
    cells = {(cell.method, cell.metric, cell.seed): cell.ledger for cell in made.cells("table6")}
    home = "results/run/digits/cnn-s"
    for method, source in (("Qimera", "qimera"), ("Base", "fixed"), ("+ Mixup", "mixup"), ("+ DSS", "dss")):
        seed = 4 if source == "qimera" else 5  # the rivals' data have the first alone
        for metric in ("recall", "coverage", "ndb", "jsd"):
            assert cells[method, metric, seed] == f"{home}/{source}/seed-{seed}/diversity@dev.json"
        assert cells[method, "clean", seed].startswith(f"{home}/{source}/dfshield-plain/linf-8-255/seed-{seed}/eval/")
    options = made.options("diversity", made.place("digits", "cnn-s"))
    assert (options.seed, options.bins, options.split, options.features) == (4, 7, "dev", "teacher")


def test_no_training_images_no_diversity(tmp_path):
    tables = tmp_path / "tables.yaml"
    text = (ROOT / "config/tables.yaml").read_text()
    tables.write_text(text.replace("metrics: [clean, pgd10, autoattack]", "metrics: [clean, recall]", 1))
    cells = plan(tables=str(tables), methods=["undefended", "ait", "ours"]).cells("table4")
    assert [(c.method, c.metric) for c in cells] == [
        ("Undefended", "clean"), ("AIT", "clean"), ("AIT", "recall"), ("Ours", "clean"), ("Ours", "recall"),
    ]  # fmt: skip


def test_rows_whose_source_and_recipe_do_not_go_together(tmp_path):
    text = (ROOT / "config/tables.yaml").read_text()
    for old, new, message in (
        (
            "source: none, recipe: ait",
            "source: dss, recipe: ait",
            "row 'AIT' has source 'dss', but recipe 'ait' trains a",
        ),
        (
            "source: dss, recipe: dfshield}",
            "source: none, recipe: dfshield}",
            "'dfshield' needs a training set: its source",
        ),
    ):
        assert old in text
        (tmp_path / "tables.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            plan(tables=str(tmp_path / "tables.yaml")).cells("table4")


def test_rows_that_only_stand_ins_have_or_only_the_papers_data():
    papers = {"name": "x", "datasets": {"cifar10": {"models": ["wrn28_10"], "threat": "linf:4/255"}}}
    for grid in ("demo", "full"):  # how much is computed does not decide which rows there are
        for base, ours, plus in ((GRID, "dfshield-8", True), (papers, "dfshield", False)):
            made = plan(base | {"grid": grid})
            assert {"Plus" in (cell.method for cell in made.cells("table4"))} == {plus}
            assert {f"/{ours}" in cell.ledger for cell in made.cells("table24")} == {True}


def test_a_method_with_a_row_for_each_kind_of_data_is_there_once():
    table = plan().tables["table24"]
    for methods in ([], ["ours"], ["undefended", "ours"]):
        ours = [row.recipe for row in plan(methods=methods).rows(table) if row.method == "Ours"]
        assert ours == ["dfshield-8"]


def test_recipes_of_rows_that_are_not_built_are_not_asked_for():
    few = plan(methods=["ours"], recipes={"dast": None, "std": None})
    assert {cell.method for cell in few.cells("table4")} == {"Ours"}


def test_a_stand_in_has_sweeps_at_one_seed():
    for table in ("table14", "table23", "table24", "table25", "figure5"):
        assert {cell.seed for cell in plan(seeds=[0, 5]).cells(table)} == {0}
        assert {cell.seed for cell in plan(seeds=[0, 5], grid="full").cells(table)} == {0, 5}


@pytest.mark.parametrize(("table", "key", "own"), [("table23", "B=20", 20), ("table24", "tau=0.5", 0.5)])
def test_a_swept_value_that_is_the_recipes_own_shares_its_files(table, key, own):
    papers = {"name": "x", "grid": "full", "datasets": {"cifar10": {"models": ["wrn28_10"], "threat": "linf:4/255"}}}
    ledgers = {cell.variant: cell.ledger for cell in plan(papers).cells(table)}
    assert "/dss/dfshield/" in ledgers[key]
    assert all(("/dss/dfshield/" in ledger) == (name == key) for name, ledger in ledgers.items())
    assert ledgers[key] in {cell.ledger for cell in plan(papers).cells("table4")}
    option = "aggregate" if table == "table23" else "tau"
    elsewhere = plan(papers, train={option: 1}).cells(table)
    assert "/dss/dfshield/" in next(c.ledger for c in elsewhere if c.variant in ("B=1", "tau=1"))


def test_tables_that_a_config_cannot_have():
    with pytest.raises(InputError, match=r"no 'table99'; tables are table4, table2, table5"):
        plan().cells("table99")
    with pytest.raises(InputError, match="table8: its row 'Base' takes source 'fixed', which the config lacks"):
        plan(sources={"fixed": None, "mixup": None, "cutout": None, "cutmix": None}).cells("table8")
    with pytest.raises(InputError, match=r"takes recipe 'ait', which the config lacks; add it under recipes: \(there"):
        plan(recipes={"ait": None}).cells("table4")
    lone = plan({"name": "x", "datasets": {"svhn": {"models": ["cnn-s"], "threat": "linf:4/255"}}})
    with pytest.raises(InputError, match="table4: the config's data sets and models have no cell in it"):
        lone.cells("table4")
    assert "table4" not in lone.own_tables


def test_cells_of_a_hardened_model():
    cells = plan(MINE, seeds=[4]).harden_cells("net")
    assert [(cell.method, cell.metric) for cell in cells] == [
        (method, metric) for method in ("Undefended", "Hardened") for metric in ("clean", "pgd10", "autoattack")
    ]
    root = "results/mine/harden/net/dss/dfshield/linf-8-255/seed-4/eval/none"
    assert cells[3].ledger == cells[5].ledger == f"{root}/autoattack@linf-8-255/ledger.h5"
    assert cells[4].ledger == f"{root}/pgd10@linf-8-255/ledger.h5"
    assert plan(MINE, harden__net__evaluation=None).harden_cells("net") == []


def test_a_row_that_is_for_those_who_name_it():
    assert "Mixed" not in {cell.method for made in (plan(), paper()) for cell in made.cells("table4")}
    cells = plan(methods=["ours", "mixed"]).cells("table4")
    assert [(cell.method, cell.defence) for cell in cells if cell.metric == "clean"] == [
        ("Ours", "none"),
        ("Mixed", "mixture"),
    ]


def test_every_path_of_a_cell_is_within_the_vocabulary():
    for made in (paper(), plan(**TWO, seeds=[0, 1]), plan(MINE)):
        words = made.vocabulary
        tables = [cell for table in made.own_tables for cell in made.cells(table)]
        for cell in [*tables, *(c for name in made.config.harden for c in made.harden_cells(name))]:
            fields = ("run", "dataset", "model", "source", "seed")
            if cell.evidence == "certificates":
                place = Place.parse(CERTIFICATES, cell.ledger)
                fields += ("recipe", "train_threat", "defence")
            elif cell.evidence == "detection":
                place = Place.parse(DETECTION, cell.ledger)
                fields += ("recipe", "train_threat", "defence", "threat")
            elif cell.evidence == "landscape":
                place = Place.parse(LANDSCAPE, cell.ledger)
                fields += ("recipe", "train_threat", "threat")
            elif cell.metric not in DIVERSITY_METRICS:
                place = Place.parse(LEDGER, cell.ledger)
                fields += ("recipe", "train_threat", "defence", "protocol", "threat")
            elif place := Place.parse(DIVERSITY, cell.ledger):
                fields += ("split",)
            else:
                place = Place.parse(IMAGES_DIVERSITY, cell.ledger)
                fields += ("recipe", "train_threat", "split")
            assert all(str(getattr(place, field)) in words[field] for field in fields)


def test_evaluation_has_a_threat_of_its_own():
    """A protocol's threat is the evaluation's alone: the student is trained at the data set's."""
    wide = {"wide": {"attack": "pgd", "steps": 10, "threat": "linf:16/255"}}
    made = plan(protocols=wide)
    tables = dict(made.tables)
    tables["table4"] = tables["table4"].model_copy(update={"metrics": ("clean", "wide")})
    cells = {(c.method, c.metric): c for c in Plan(made.config, tables).cells("table4")}
    ours = cells["Ours", "wide"]
    assert ours.threat == "linf:16/255"
    assert "/dfshield/linf-8-255/seed-0/eval/none/wide@linf-16-255/" in ours.ledger
    assert cells["Ours", "clean"].ledger == ours.ledger
    place = Place.parse(LEDGER, ours.ledger)
    assert (made.options("attack", place).threat, made.options("train", place).threat) == ("linf:16/255", "linf:8/255")
    with pytest.raises(InputError, match="no threat model 'linf-8-255' for wide"):
        made.options("attack", place.at(threat="linf-8-255"))


def test_a_row_may_stand_behind_a_defence():
    made = plan()
    row = made.tables["table4"].rows[0].model_copy(update={"defence": "tte", "method": "TTE"})
    tables = made.tables | {"table4": made.tables["table4"].model_copy(update={"rows": (row,)})}
    ledgers = {cell.ledger for cell in Plan(made.config, tables).cells("table4")}
    assert all("/none/none/none/seed-0/eval/tte/" in ledger for ledger in ledgers)
    assert made.defence("tte").defence == "tte" and made.defence("none") is None
    unknown = made.tables | {
        "table4": made.tables["table4"].model_copy(update={"rows": (row.model_copy(update={"defence": "wall"}),)})
    }
    with pytest.raises(InputError, match="takes defence 'wall', which the config lacks; add it under defences:"):
        Plan(made.config, unknown).cells("table4")


def test_images_of_a_co_trained_generator_are_measured():
    made = plan()
    spec = made.tables["table6"]
    row = spec.rows[0].model_copy(update={"method": "DaST", "source": "none", "recipe": "dast"})
    tables = made.tables | {"table6": spec.model_copy(update={"rows": (row,)})}
    cells = {cell.metric: cell.ledger for cell in Plan(made.config, tables).cells("table6")}
    home = "results/run/digits/cnn-s/none/dast/linf-8-255/seed-0"
    assert cells["recall"] == f"{home}/diversity@train.json" and cells["pgd10"].startswith(f"{home}/eval/")
    assert made.place("digits", "cnn-s", recipe="dast").path(IMAGES) == f"{home}/images.h5"
