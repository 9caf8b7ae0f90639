"""Tables, their Markdown and LaTeX, the model card, and what `dfshield inspect` prints: all from ledgers."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from support.ledgers import make_ledger, make_record

from dfshield.core.errors import InputError
from dfshield.evaluation.record import METRICS as DIVERSITY
from dfshield.models.checkpoints import Card, build_network, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.planning.cells import Cell, swept, variant
from dfshield.planning.tables import TableSpec, load_tables
from dfshield.report import card as model_card
from dfshield.report import layout, render, tables
from dfshield.sources.trainset import Writer
from dfshield.tools import inspect

SPECS = load_tables(Path(__file__).parents[2] / "config" / "tables.yaml")


def cell(ledger: Path, **changes: object) -> Cell:
    fields = {"table": "table4", "dataset": "digits", "model": "cnn-s", "method": "Ours", "variant": ""}
    fields |= {"defence": "none", "threat": "linf:8/255", "metric": "pgd10", "seed": 0, "ledger": str(ledger)}
    return Cell(**(fields | changes))  # type: ignore[arg-type]


def grid(folder: Path, spec: TableSpec, dataset: str, models: list[str], seeds: int, scale: str = "demo") -> list[Cell]:
    """Cells of a table with ledgers whose accuracies differ by method, sweep and seed."""
    threats = spec.papers_threats if dataset in spec.paper.datasets else ("linf:8/255",)
    if spec.threats and dataset not in spec.paper.datasets:
        threats = getattr(spec.threats, scale)
    values = product(*(getattr(sweep, scale) for sweep in spec.sweep.values()))
    settings = [dict(zip(spec.sweep, value, strict=True)) for value in values]
    found = []
    stand_in = dataset not in spec.paper.datasets
    rows = [row for row in spec.rows if row.only != ("paper" if stand_in else "stand-in")]
    kinds = product(enumerate(threats), enumerate(rows), enumerate(settings), models)
    for (k, threat), (i, row), (j, setting), model in kinds:
        for metric, seed in product(spec.metrics, range(seeds if row.source != "none" else 1)):
            own = {"table": spec.key, "dataset": dataset, "model": model, "method": row.method, "metric": metric}
            own |= {"seed": seed, "variant": variant(setting), "threat": threat}
            if metric in DIVERSITY:
                path = folder / f"{dataset}-{model}-{i}-{seed}.json"
                make_record(path, (5 + i + seed) / 16, dataset=dataset, model=model, source=row.source, seed=seed)
                found.append(cell(path, **own))
                continue
            protocol = "aa-standard" if metric == "autoattack" else metric
            path = folder / f"{dataset}-{model}-{i}-{j}-{k}-{metric}-{seed}.h5"
            clean, robust = 150 + i + seed, 60 + 10 * i + 2 * j + seed - 20 * k
            make_ledger(
                path,
                clean,
                clean if metric == "clean" else robust,
                protocol=protocol,
                threat=threat,
                real_data="train" if row.source == "real" else "none",
            )
            found.append(cell(path, **own))
    return found


# --- rows and CSV -----------------------------------------------------------------------------------------------------


def test_row_holds_the_ledgers_figures(tmp_path: Path) -> None:
    sha = make_ledger(tmp_path / "l.h5", clean=150, robust=50, n=200)
    (row,) = tables.build([cell(tmp_path / "l.h5")])
    assert (row.value, row.n, row.majority, row.protocol, row.ledger_sha256) == (25.0, 200, 10.0, "pgd10", sha)
    assert (row.ci_low, row.ci_high) == pytest.approx((19.5082, 31.4341), abs=1e-4)  # Wilson, 50 of 200
    assert row.balanced == pytest.approx(25.0)
    assert row.flags == () and row.paper is None and row.unit == "%"


def test_clean_is_of_the_unperturbed_images_whatever_the_ledger(tmp_path: Path) -> None:
    make_ledger(tmp_path / "l.h5", clean=150, robust=50, flags=("zero-gradients",))
    (row,) = tables.build([cell(tmp_path / "l.h5", metric="clean")])
    assert row.value == 75.0 and row.balanced == pytest.approx(75.0) and row.flags == ()


def test_flags(tmp_path: Path) -> None:
    label = np.arange(200) % 10
    constant = np.zeros(200, dtype=np.int64)
    wrong = label > 0
    make_ledger(
        tmp_path / "constant.h5",
        0,
        0,
        clean_prediction=constant,
        prediction=constant,
        broken=wrong,
        component=wrong.astype(np.uint8),
        perturbed_index=np.zeros(0, dtype=np.int64),
        perturbation=np.zeros((0, 1, 4, 4), dtype=np.float16),
        real_data="train",
        protocol="aa-standard[C=7: 6 targets]",
        flags=("zero-gradients", "randomised"),
    )
    (row,) = tables.build([cell(tmp_path / "constant.h5", metric="autoattack")])
    assert row.flags == (
        "masked-gradients:zero-gradients",
        "randomised",
        "diverged",
        "not-data-free",
        "reduced-classes",
    )
    make_ledger(tmp_path / "public.h5", 150, 50, real_data="public")
    assert tables.build([cell(tmp_path / "public.h5")])[0].flags == ("not-data-free",)
    make_ledger(tmp_path / "teacher.h5", 150, 50, real_data="teacher")
    assert tables.build([cell(tmp_path / "teacher.h5")])[0].flags == ()


def test_a_rival_that_diverged_is_marked(tmp_path: Path) -> None:
    """The paper's dagger, from the clean predictions of any of its ledgers."""
    spec = SPECS["table4"]
    cells = grid(tmp_path, spec, "digits", ["cnn-s"], seeds=1)
    constant = np.full(200, 3)
    wrong = np.arange(200) % 10 != 3
    for found in cells:
        if found.method == "DaST":
            changes = {"clean_prediction": constant, "prediction": constant, "broken": wrong}
            changes |= {"component": wrong.astype(np.uint8), "perturbed_index": np.zeros(0, dtype=np.int64)}
            protocol = "aa-standard" if found.metric == "autoattack" else found.metric
            make_ledger(
                Path(found.ledger), 0, 0, perturbation=np.zeros((0, 1, 4, 4), np.float16), protocol=protocol, **changes
            )
    rows = tables.build(cells, spec)
    assert {row.method for row in rows if "diverged" in row.flags} == {"DaST"}
    text, tex = render.markdown(rows, spec), render.latex(rows, spec)
    assert re.search(r"\| DaST \| (10\.00<sup>†</sup> \[[^|]* \| ?){3}", text)
    assert "† did not converge: " in text
    assert tex.count(r"10.00\textsuperscript{$\dagger$}") == 3


@pytest.mark.parametrize(
    ("changes", "paper"),
    [
        ({}, 51.13),
        ({"dataset": "digits"}, None),
        ({"threat": "linf:8/255"}, None),
        ({"threat": "linf:0.01568627450980392"}, 51.13),
        ({"model": "resnet18"}, None),
        ({"method": "Undefended"}, None),
        ({"variant": "tau=0.5"}, None),
    ],
)
def test_paper_column_only_where_the_cell_is_the_papers(tmp_path: Path, changes: dict, paper: float | None) -> None:
    own = {"dataset": "cifar10", "model": "wrn28_10", "threat": "linf:4/255"} | changes
    make_ledger(tmp_path / "l.h5", 150, 50, threat=own["threat"])
    assert tables.build([cell(tmp_path / "l.h5", **own)], SPECS["table4"])[0].paper == paper


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"metric": "autoattack"}, "protocol is pgd10"), ({"threat": "linf:4/255"}, "threat is linf:8/255")],
)
def test_ledger_of_another_cell_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    make_ledger(tmp_path / "l.h5", 150, 50)
    with pytest.raises(InputError, match=message):
        tables.build([cell(tmp_path / "l.h5", **changes)])


def test_csv_is_tidy_and_comes_back(tmp_path: Path) -> None:
    rows = tables.build(grid(tmp_path, SPECS["table25"], "digits", ["cnn-s"], seeds=2), SPECS["table25"])
    tables.write_csv(tmp_path / "table25.csv", rows)
    head, first, *_ = (tmp_path / "table25.csv").read_text().splitlines()
    assert head == (
        "dataset,model,method,variant,defence,threat,metric,value,unit,ci_low,ci_high,n,seed,protocol,flags,"
        "majority,balanced,macro_f1,paper,ledger_sha256"
    )
    assert first.startswith('digits,cnn-s,Ours,"lambda1=0.1,lambda2=0.1",none,linf:8/255,autoattack,30.00,%,24.')
    again = tables.read_csv(tmp_path / "table25.csv")
    assert len(again) == 9 * 2 * 2
    assert [tables.cell_text(row.ci_low) for row in again] == [tables.cell_text(row.ci_low) for row in rows]
    assert [(row.key, row.seed, row.flags, row.paper) for row in again] == [
        (row.key, row.seed, row.flags, row.paper) for row in rows
    ]


@pytest.mark.parametrize(("column", "text"), [("variant", "tau"), ("threat", "linf"), ("n", "many"), ("value", "")])
def test_csv_with_bad_cell_is_refused(tmp_path: Path, column: str, text: str) -> None:
    make_ledger(tmp_path / "l.h5", 150, 50)
    tables.write_csv(tmp_path / "t.csv", tables.build([cell(tmp_path / "l.h5", variant="tau=1")]))
    head, first = (tmp_path / "t.csv").read_text().splitlines()
    values = first.split(",")
    values[tables.COLUMNS.index(column)] = text
    (tmp_path / "t.csv").write_text(f"{head}\n{','.join(values)}\n")
    with pytest.raises(InputError, match=r"t\.csv"):
        tables.read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(tables.COLUMNS) + "\nx,y\n", "\x00\xff"])
def test_foreign_csv_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv"):
        tables.read_csv(path)


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
        ("layout: rows", "layout: formulas", "a table needs some, and one of formulas has none"),
        ("recipe: dfard}", "recipe: std}", "'std' is none of dast, dfme, ait, dfard, which have formulas"),
        ('threats: {demo: ["l2:8/16"], full: ["l2:128/255"]}', "threats:", "belongs in paper.threat or"),
    ],
)
def test_bad_specification_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (Path(__file__).parents[2] / "config" / "tables.yaml").read_text()
    assert old in text
    (tmp_path / "tables.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_tables(tmp_path / "tables.yaml")


# --- diversity metrics ------------------------------------------------------------------------------------------------


def test_diversity_row_holds_the_records_figures(tmp_path: Path) -> None:
    sha = make_record(tmp_path / "r.json", 0.0625)
    rows = tables.build([cell(tmp_path / "r.json", metric=metric, seed=2) for metric in ("coverage", "ndb", "jsd")])
    tables.write_csv(tmp_path / "t.csv", rows)
    home = "digits,cnn-s,Ours,,none,linf:8/255"
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == [
        f"{home},coverage,0.016,1,,,997,2,coverage[teacher k=5 train],,,,,,{sha}",
        f"{home},ndb,88,bins,,,997,2,ndb[pixels K=100 alpha=0.05 train],,,,,,{sha}",
        f"{home},jsd,0.250,nat,,,997,2,jsd[pixels K=100 train],,,,,,{sha}",
    ]
    again = tables.read_csv(tmp_path / "t.csv")
    assert [[row.text(name) for name in tables.COLUMNS] for row in again] == [
        [row.text(name) for name in tables.COLUMNS] for row in rows
    ]
    make_record(tmp_path / "r.json", real_data="train")
    assert tables.build([cell(tmp_path / "r.json", metric="recall")])[0].flags == ("not-data-free",)


def test_record_of_another_cell_is_refused(tmp_path: Path) -> None:
    make_record(tmp_path / "r.json", model="cnn-m")
    with pytest.raises(InputError, match=r"r\.json: is of digits/cnn-m, not of digits/cnn-s"):
        tables.build([cell(tmp_path / "r.json", metric="recall")])
    make_ledger(tmp_path / "l.h5", 150, 50)
    with pytest.raises(InputError, match=r"l\.h5: cannot be read as JSON"):
        tables.build([cell(tmp_path / "l.h5", metric="recall")])


def test_each_number_of_test_images_names_its_columns(tmp_path: Path) -> None:
    make_ledger(tmp_path / "p.h5", clean=150, robust=60)
    make_ledger(tmp_path / "a.h5", clean=40, robust=10, n=55, protocol="aa-standard")
    made = [("clean", "p"), ("pgd10", "p"), ("autoattack", "a")]
    rows = tables.build([cell(tmp_path / f"{name}.h5", metric=metric) for metric, name in made])
    both = (
        "n = 200 images (Clean, PGD-10), always answering the majority class scores 10.00 %; "
        "n = 55 images (AA), always answering the majority class scores 10.91 %."
    )
    assert f"Digits: l∞ ε = 8/255, {both}\n" in render.markdown(rows, SPECS["table4"])
    one = "Digits: l∞ ε = 8/255, n = 200 images, always answering the majority class scores 10.00 %.\n"
    assert one in render.markdown(rows[:2], SPECS["table4"])


def test_table_6_in_markdown(tmp_path: Path) -> None:
    spec = SPECS["table6"]
    text = render.markdown(tables.build(grid(tmp_path, spec, "digits", ["cnn-s"], 3), spec), spec)
    head = "| Method | CNN-S Clean | CNN-S PGD-10 | CNN-S AA | CNN-S Recall | CNN-S Coverage | CNN-S NDB | CNN-S JSD |"
    assert head in text
    # the base has 8, 9 and 10 sixteenths: mean 0.5625, sample standard deviation 0.0625
    assert re.search(r"\| Base \| .* \| 0\.562 ± 0\.062 \| 0\.141 ± 0\.016 \| 88 ± 0 \| 0\.250 ± 0\.000 \|", text)
    assert "Diversity metrics compare the training images with real ones (997 of Digits)" in text
    assert "Digits: l∞ ε = 8/255, n = 200 images" in text  # of the accuracies
    assert "| Qimera | 76.88 | 18.90 | 10.68 | 0.000 | 0.002 | 99 | 0.514 |" in text  # the paper's own
    own = tables.build(grid(tmp_path, spec, "cifar10", ["wrn28_10"], 1), spec)
    assert {row.metric: row.paper for row in own if row.method == "+ DSS"}["coverage"] == 0.163
    tables.write_csv(tmp_path / "t.csv", own)
    assert (
        "+ DSS,,none,linf:4/255,coverage,0.188,1,,,997,0,coverage[teacher k=5 train],,,,,0.163,"
        in (tmp_path / "t.csv").read_text()
    )


def test_a_table_of_diversity_alone_speaks_of_no_accuracy(tmp_path: Path) -> None:
    spec = SPECS["table6"].model_copy(update={"metrics": ("recall", "ndb")})
    text = render.markdown(tables.build(grid(tmp_path, spec, "digits", ["cnn-s"], 1), spec), spec)
    own, _, _ = text.partition("The paper's")
    assert "Diversity metrics compare" in own
    assert "Accuracies" not in own and "Wilson" not in own and "majority" not in own


def test_table_19_has_models_below_one_another_and_gains(tmp_path: Path) -> None:
    spec = SPECS["table19"]
    text = render.markdown(tables.build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 1), spec), spec)
    assert "| Model | Method | Clean | PGD-10 | AA | Recall | Coverage | NDB | JSD |" in text
    assert text.count("| CNN-S | Base |") == text.count("| CNN-M | Base |") == 1
    assert (
        len(re.findall(r"\|  \| \+ Cutout \| 76\.00 \S+ \S+ \| .* 40\.00 \S+ \S+ \(\+10\.00\) \| 0\.438 \|", text)) == 2
    )
    assert "|  | + Mixup | 94.50 | 67.51 | 54.70 (-5.29) | 0.252 | 0.120 | 94 | 0.277 |" in text  # the paper's own


# --- Markdown and LaTeX -----------------------------------------------------------------------------------------------


def test_seeds_are_averaged_and_one_ledger_counts_once(tmp_path: Path) -> None:
    cells = grid(tmp_path, SPECS["table4"], "digits", ["cnn-s"], seeds=3)
    text = render.markdown(tables.build(cells, SPECS["table4"]), SPECS["table4"])
    # the sixth row: robust 110, 111, 112 of 200: mean 55.5, sample standard deviation 0.5
    assert "| Ours | 78.00 ± 0.50 [71.8, 83.2] | 55.50 ± 0.50 [48.6, 62.2] | 55.50 ± 0.50 [48.6, 62.2] |" in text
    assert "| Undefended | 75.00 [68.6, 80.5] | 30.00 [" in text
    assert "over 3 seeds" in text and "n = 200 images" in text
    assert "majority class scores 10.00 %" in text
    assert "<sup>‡</sup>" in text and "‡ trained on real images" in text


def test_seeds_that_share_a_ledger_have_no_spread(tmp_path: Path) -> None:
    make_ledger(tmp_path / "l.h5", 150, 50)
    make_ledger(tmp_path / "other.h5", 150, 54, seed=1)
    same, again = (cell(tmp_path / "l.h5", seed=seed) for seed in (0, 1))
    other = cell(tmp_path / "other.h5", seed=1)
    (one,) = layout.measured(tables.build([same, again])).values()
    (two,) = layout.measured(tables.build([same, other])).values()
    assert (one.mean, one.spread) == (25.0, None)
    assert (two.mean, two.spread) == (26.0, pytest.approx(2**0.5))


def test_stand_in_prints_the_papers_table_as_other_data(tmp_path: Path) -> None:
    spec = SPECS["table4"]
    digits = render.markdown(tables.build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 1), spec), spec)
    assert "Stand-in data: Digits in place of SVHN, CIFAR-10, CIFAR-100." in digits
    assert "not comparable" in digits and digits.count("**Digits**") == 1
    assert "| DaST | 20.66 |" in digits and "10.00<sup>†</sup>" in digits
    own = render.markdown(tables.build(grid(tmp_path, spec, "cifar10", ["resnet20"], 1), spec), spec)
    assert "Stand-in" not in own and "not comparable" not in own and "62.66" in own


def test_ablation_has_ticks_and_gains(tmp_path: Path) -> None:
    spec = SPECS["table8"]
    text = render.markdown(tables.build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 1), spec), spec)
    assert "| Model | L_DFShield | DSS | GradRefine | Clean | AA (gain) |" in text
    assert "| CNN-S | ✗ | ✗ | ✗ | 75.00" in text
    assert re.search(r"\|  \| ✓ \| ✓ \| ✗ \| 76\.00 \S+ \S+ \| 40\.00 \S+ \S+ \(\+10\.00\) \|", text)
    assert "| 36.34 (-1.62) |" in text  # the paper's own


def test_sweep_and_matrix(tmp_path: Path) -> None:
    spec = SPECS["table24"]
    text = render.markdown(tables.build(grid(tmp_path, spec, "digits", ["cnn-s"], 1), spec), spec)
    assert "| τ | CNN-S Clean | CNN-S PGD-10 | CNN-S AA |" in text
    assert re.search(r"\| 0\.5 \| 75\.00 \[.*\] \| 31\.00 ", text)
    assert "| τ | SVHN Clean |" in text
    spec = SPECS["table26"]
    text = render.markdown(tables.build(grid(tmp_path, spec, "cifar10", ["resnet20"], 1, "full"), spec), spec)
    assert "| λ1 \\ λ2 | 0 | 0.01 | 0.1 | 1 | 10 | 100 |" in text
    assert "| 0.01 | 36.00 [29.7, 42.9] (75.00) |" in text
    assert "| 1 | 20.83 (78.49) |" in text


def test_table_1_has_data_sets_side_by_side(tmp_path: Path) -> None:
    spec, models = SPECS["table1"], ["resnet18", "resnet50"]
    cells = [c for d in ("bloodmnist", "pathmnist") for c in grid(tmp_path, spec, d, models, 1)]
    text = render.markdown(tables.build(cells, spec), spec)
    metrics = " | ".join(f"{name} {metric}" for name in ("Blood", "Path") for metric in ("Clean", "PGD-10", "AA"))
    assert f"| Method | {metrics} |" in text and "Stand-in" not in text
    first, second = text.index("**ResNet-18**"), text.index("**ResNet-50**")
    assert first < text.index("| Ours | 77.50 [") < second  # the sixth row: 155 of 200
    real = "<sup>‡</sup>"
    assert f"| Public | 22.04{real} | 0.02{real} | 0.00{real} | 9.09<sup>‡,†</sup> |" in text  # the paper's own
    by_method = {(row.dataset, row.method, row.metric): row.paper for row in tables.build(cells, spec)}
    assert by_method["pathmnist", "DFME", "pgd10"] == 2.28  # of the later model


def test_table_11_has_data_sets_as_rows(tmp_path: Path) -> None:
    spec = SPECS["table11"]
    cells = [c for d in ("bloodmnist", "octmnist") for c in grid(tmp_path, spec, d, ["resnet18", "resnet50"], 1)]
    text = render.markdown(tables.build(cells, spec), spec)
    assert "| Data set | ResNet-18 Clean | ResNet-50 Clean |" in text
    assert text.count("| Blood | 75.00 [68.6, 80.5] | 75.00 [68.6, 80.5] |") == 1
    assert "| OCT | 80.60 | 84.90 |" in text
    assert "Blood: n = 200 images" in text  # nothing is perturbed


def test_table_14_has_a_block_for_every_size(tmp_path: Path) -> None:
    spec = SPECS["table14"]
    rows = tables.build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 2), spec)
    rows = [row for row in rows if row.method in ("Original", "Ours") or row.model == "cnn-s"]
    text = render.markdown(rows, spec)
    blocks = [text.index(f"**Digits, l∞ ε = {n}/16**") for n in (1, 2, 3)]
    assert blocks == sorted(blocks)
    second = text[blocks[1] : blocks[2]]
    # DaST is the second row: 60 + 10 - 20 of 200 in the second block
    assert re.search(r"\| DaST \| 75\.50 \S+ \S+ \| 25\.00 .* \| – \| – \| – \|", second)
    assert "Digits: l∞ ε = 1/16, l∞ ε = 2/16, l∞ ε = 3/16, n = 200 images" in text
    for eps, original in ((2, "95.42 | 88.04 | 86.72"), (8, "86.50 | 55.68 | 40.31")):
        block = text[text.index(f"**SVHN, l∞ ε = {eps}/255**") :]
        assert f"| Original | {original} |" in block.splitlines()[4]
    own = tables.build(grid(tmp_path, spec, "svhn", ["resnet20"], 1), spec)
    papers = {row.threat: row.paper for row in own if (row.method, row.metric) == ("Ours", "autoattack")}
    assert papers == {"linf:2/255": 72.17, "linf:4/255": 47.55, "linf:6/255": 31.15, "linf:8/255": 20.84}


def test_balanced_accuracy_tells_threats_apart(tmp_path: Path) -> None:
    """Where one class dominates, it is printed for every row; rows of other threats are other rows."""
    spec = SPECS["table14"]
    label = np.where(np.arange(200) < 80, 0, np.arange(200) % 10)
    cells = [c for c in grid(tmp_path, spec, "digits", ["cnn-s"], 1) if c.method == "Ours" and c.metric == "pgd10"]
    for found, right in zip(cells, (100, 60, 20), strict=True):
        prediction = np.where(np.arange(200) < right, label, (label + 1) % 10)
        wrong = prediction != label
        changes = {"label": label, "clean_prediction": prediction, "prediction": prediction, "broken": wrong}
        changes |= {"component": wrong.astype(np.uint8), "perturbed_index": np.zeros(0, dtype=np.int64)}
        changes |= {"perturbation": np.zeros((0, 1, 4, 4), np.float16), "threat": found.threat}
        make_ledger(Path(found.ledger), 0, 0, **changes)
    text = render.markdown(tables.build(cells, spec), spec)
    assert len(re.findall(r"Ours l∞ ε = \d/16 \d+\.\d\d", text)) == 3


def test_formulas_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfshield.planning.config import check_config
    from dfshield.planning.plan import Plan

    monkeypatch.chdir(Path(__file__).parents[2])
    config = {"name": "run", "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/255"}}}
    tables.run(Plan.of(check_config(config)), "table2", tmp_path / "table2.csv")
    text, tex = (tmp_path / "table2.csv").read_text(), (tmp_path / "table2.tex").read_text()
    assert text.splitlines()[0] == "method,generator,student" and len(text.splitlines()) == 5
    assert '\nAIT,"CE(T(x), y) + w·BN(x)","CE(S(x), y) + β·KL(S(x), S(x\'))"\n' in text
    assert "| AIT | CE(T(x), y) + w·BN(x) | CE(S(x), y) + β·KL(S(x), S(x')) |" in (tmp_path / "table2.md").read_text()
    assert r"w$\cdot$BN(x) & CE(S(x), y) + $\beta$$\cdot$KL(S(x), S(x')) \\" in tex


def test_missing_cells_are_dashes(tmp_path: Path) -> None:
    spec = SPECS["table4"]
    rows = tables.build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 1), spec)
    rows = [row for row in rows if (row.model, row.method) != ("cnn-m", "Original")]
    assert re.search(r"\| Original \| 78.*\| – \| – \| – \|", render.markdown(rows, spec))


@pytest.mark.parametrize("key", SPECS)
def test_latex_is_well_formed(tmp_path: Path, key: str) -> None:
    spec = SPECS[key]
    text = render.latex(tables.build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 2), spec), spec)
    bare = re.sub(r"\\[\\{}%&$#_]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    assert text.isascii(), [c for c in text if not c.isascii()]
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    width = len(re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)[1])  # type: ignore[index]
    for line in text.splitlines():
        if line.endswith(r" \\"):
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert line.count(" & ") + line.startswith("& ") + 1 + sum(spans) == width, line


def test_latex_escapes() -> None:
    assert render.tex("a_b 5 % & L_DFShield, λ1 ε τ") == (
        r"a\_b 5 \% \& $\mathcal{L}_{\mathrm{DFShield}}$, $\lambda_1$ $\varepsilon$ $\tau$"
    )


# --- inspect ----------------------------------------------------------------------------------------------------------


def surrogate(path: Path, dtype: type = np.float32, last_group: int = 1) -> None:
    attributes = {
        "teacher_sha256": "t" * 64,
        "dataset": "digits",
        "model": "cnn-s",
        "source": "dss",
        "real_data": "none",
        "options": '{"iterations":7,"lr":0.1}',
        "seed": 3,
        "classes": 4,
        "groups": 2,
        "first_group": 0,
        "last_group": last_group,
    }
    labels = np.arange(48) % 4
    images = np.broadcast_to((labels / 3).astype(np.float32)[:, None, None, None], (48, 8, 8, 1))
    if dtype is np.uint8:
        images = np.rint(images * 255).astype(np.uint8)
    writer = Writer(path, attributes, ("class", "feature"))
    losses = {"class": np.array([0.25, 0.75]), "feature": np.array([1.0, 2.0])}
    writer.append(images, labels, np.repeat([0, last_group], 24), losses, losses)
    writer.finish()


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_inspect_surrogate(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: type) -> None:
    from PIL import Image

    surrogate(tmp_path / "data.h5", dtype)
    inspect.run(tmp_path / "data.h5", tmp_path / "sheet.png")
    out = capsys.readouterr().out
    for wanted in (
        "surrogate data",
        "groups 0 to 1 of 2",
        f"48 of 8×8×1 (H×W×C), {np.dtype(dtype)}",
        "12 12 12 12",
        "0.25 to 0.75, mean 0.5",
        "iterations=7, lr=0.1",
        "real data: none",
        "t" * 64,
        "40 images",
    ):
        assert wanted in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * 50 + 2, 28 + 10 * 50, 3)
    assert [int(sheet[50 * row + 20, 60, 0]) for row in range(4)] == [0, 85, 170, 255]
    assert (sheet[:, :26].min(axis=(1, 2)) < 128).any()  # class labels are drawn


def test_inspect_shard_ledger_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surrogate(tmp_path / "shard.h5", last_group=0)
    inspect.run(tmp_path / "shard.h5", None)
    make_ledger(tmp_path / "ledger.h5", 150, 50, flags=("zero-gradients",))
    inspect.run(tmp_path / "ledger.h5", tmp_path / "ledger.png")
    checkpoint(tmp_path / "student.safetensors", "student", "none", 0)
    inspect.run(tmp_path / "student.safetensors", None)
    out = capsys.readouterr().out
    for wanted in (
        "shard",
        "one shard",
        "evaluation ledger",
        "75.00 % (150 of 200), 95 % interval 68.57 to 80.49",
        "25.00 % (50 of 200)",
        "100 images, 50.00 %",
        "masked-gradients:zero-gradients",
        "checkpoint",
        "student, real data: none",
        "1×8×8 (C×H×W), 10 classes",
        "lambda1=1.0",
    ):
        assert wanted in out, wanted
    assert (tmp_path / "ledger.png").is_file()
    with pytest.raises(InputError, match="no images"):
        inspect.run(tmp_path / "student.safetensors", tmp_path / "s.png")
    with pytest.raises(InputError, match="PNG"):
        inspect.run(tmp_path / "ledger.h5", tmp_path / "s.jpg")


def test_inspect_refuses(tmp_path: Path) -> None:
    (tmp_path / "page.h5").write_text("<html>")
    surrogate(tmp_path / "cut.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "cut.h5").read_bytes()[:-600])
    for name in ("none.h5", "page.h5", "cut.h5"):
        with pytest.raises(InputError, match=name):
            inspect.run(tmp_path / name, None)


def test_perturbations_are_drawn_around_grey(tmp_path: Path) -> None:
    from dfshield.evaluation.ledger import read_ledger

    shape = (100, 3, 4, 4)
    delta = np.zeros(shape, dtype=np.float16)
    delta[:, 0], delta[:, 1] = 8 / 255, -8 / 255
    make_ledger(tmp_path / "l.h5", 150, 50, perturbation=delta)
    drawing = inspect.draw_ledger(read_ledger(tmp_path / "l.h5"))
    assert drawing is not None
    images, labels = drawing
    assert images.shape == (100, 4, 4, 3) and len(labels) == 100
    assert images[0, 0, 0].tolist() == [255, 0, 128]
    make_ledger(tmp_path / "clean.h5", 150, 150)
    assert inspect.draw_ledger(read_ledger(tmp_path / "clean.h5")) is None


# --- model card -------------------------------------------------------------------------------------------------------


def checkpoint(path: Path, kind: str, real_data: str, seed: int, **provenance: object) -> str:
    net = build_network("cnn-s", (1, 8, 8), 10, seed=seed)
    details = {"options": {"lambda1": 1.0, "threat": "linf:8/255"}, "seed": 0, "recipe": "dfshield", "source": "dss"}
    card = Card(kind, "digits", "cnn-s", (1, 8, 8), 10, (0.3,), (0.38,), real_data,  # type: ignore[arg-type]
                provenance=details | provenance)  # fmt: skip
    return save_checkpoint(path, Classifier(net, (0.3,), (0.38,)), card)


def test_model_card_says_what_the_ledgers_say_and_its_code_runs(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    checkpoint(tmp_path / "model.safetensors", "student", "none", 1, teacher_sha256="t" * 64, data_sha256="d" * 64)
    classifier, card = load_checkpoint(tmp_path / "model.safetensors")
    make_ledger(tmp_path / "a.h5", 150, 50)
    make_ledger(tmp_path / "b.h5", 190, 3, flags=("randomised",))
    rows = tables.build([cell(tmp_path / "b.h5", method="Undefended"), cell(tmp_path / "a.h5")])
    text = model_card.model_card("mine", card, rows, {"options": {"iterations": 7}})
    assert "| Ours | PGD-10 | 25.00 | 19.5 to 31.4 | 200 | pgd10 at `linf:8/255` |" in text
    assert "| Undefended | PGD-10 | 1.50<sup>‖</sup> |" in text and "‖ the model's output varies" in text
    for wanted in (card.tensors_sha256, "t" * 64, "d" * 64, "iterations `7`", "not a claim of privacy", "synthetic"):
        assert wanted in text
    monkeypatch.chdir(tmp_path)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]
    assert len(code.splitlines()) == 5
    space: dict = {"images": images}
    exec(code, space)
    assert torch.allclose(space["logits"], classifier(images), atol=1e-6)


def test_model_card_of_real_data_and_without_figures(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model.safetensors", "student", "train", 1)
    text = model_card.model_card("mine", load_checkpoint(tmp_path / "model.safetensors")[1], [], None)
    assert "not data-free" in text and "No real image was read" not in text
    assert "Not evaluated" in text


def test_model_card_of_a_users_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_net.py").write_text(
        "from dfshield.models.cnn import cnn_s\n\n"
        "def make(width):\n    assert width == 2\n    return cnn_s((1, 8, 8), 10)\n"
    )
    factory = "users_net.py:make"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = build_network("x", (1, 8, 8), 10, factory, {"width": 2}, seed=4)
    card = Card("student", "harden", "mine", (1, 8, 8), 10, (0.3,), (0.38,), "none", factory, {"width": 2})
    save_checkpoint(tmp_path / "model.safetensors", Classifier(net, (0.3,), (0.38,)), card)
    text = model_card.model_card("mine", card, [], None)
    space: dict = {"images": torch.zeros(2, 1, 8, 8)}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], space)  # type: ignore[index]
    classifier = load_checkpoint(tmp_path / "model.safetensors", factory=factory)[0]
    assert torch.allclose(space["logits"], classifier(space["images"]), atol=1e-6)
