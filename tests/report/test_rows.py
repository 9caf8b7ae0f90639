"""Rows of tables and their CSV: every figure is a ledger's or a record's."""

from pathlib import Path

import numpy as np
import pytest
from support.cells import SPECS, cell, grid
from support.ledgers import make_ledger, make_record

from dfshield.core.errors import InputError
from dfshield.report.rows import COLUMNS, cell_text, read_csv, write_csv
from dfshield.report.table import build


def test_row_holds_the_ledgers_figures(tmp_path: Path) -> None:
    sha = make_ledger(tmp_path / "l.h5", clean=150, robust=50, n=200)
    (row,) = build([cell(tmp_path / "l.h5")])
    assert (row.value, row.n, row.majority, row.protocol, row.ledger_sha256) == (25.0, 200, 10.0, "pgd10", sha)
    assert (row.ci_low, row.ci_high) == pytest.approx((19.5082, 31.4341), abs=1e-4)  # Wilson, 50 of 200
    assert row.balanced == pytest.approx(25.0)
    assert row.flags == () and row.paper is None and row.unit == "%"


def test_clean_is_of_the_unperturbed_images_whatever_the_ledger(tmp_path: Path) -> None:
    make_ledger(tmp_path / "l.h5", clean=150, robust=50, flags=("zero-gradients",))
    (row,) = build([cell(tmp_path / "l.h5", metric="clean")])
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
        protocol="autoattack[C=7: 6 targets]",
        flags=("zero-gradients", "randomised"),
    )
    (row,) = build([cell(tmp_path / "constant.h5", metric="autoattack")])
    assert row.flags == (
        "masked-gradients:zero-gradients",
        "randomised",
        "diverged",
        "not-data-free",
        "reduced-classes",
    )
    make_ledger(tmp_path / "public.h5", 150, 50, real_data="public")
    assert build([cell(tmp_path / "public.h5")])[0].flags == ("not-data-free",)
    make_ledger(tmp_path / "teacher.h5", 150, 50, real_data="teacher")
    assert build([cell(tmp_path / "teacher.h5")])[0].flags == ()


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
    assert build([cell(tmp_path / "l.h5", **own)], SPECS["table4"])[0].paper == paper


def test_paper_column_of_a_defence_at_test_time(tmp_path: Path) -> None:
    own = {"dataset": "tissuemnist", "model": "resnet18", "method": "TTE", "defence": "tte", "metric": "clean"}
    make_ledger(tmp_path / "l.h5", 150, 50, defence="tte")
    assert build([cell(tmp_path / "l.h5", **own)], SPECS["table3"])[0].paper == 56.60
    assert build([cell(tmp_path / "l.h5", **own | {"method": "Mixed"})], SPECS["table3"])[0].paper is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"metric": "autoattack"}, "protocol is pgd10"), ({"threat": "linf:4/255"}, "threat is linf:8/255")],
)
def test_ledger_of_another_cell_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    make_ledger(tmp_path / "l.h5", 150, 50)
    with pytest.raises(InputError, match=message):
        build([cell(tmp_path / "l.h5", **changes)])


def test_csv_is_tidy_and_comes_back(tmp_path: Path) -> None:
    rows = build(grid(tmp_path, SPECS["table25"], "digits", ["cnn-s"], seeds=2), SPECS["table25"])
    write_csv(tmp_path / "table25.csv", rows)
    head, first, *_ = (tmp_path / "table25.csv").read_text().splitlines()
    assert head == (
        "dataset,model,method,variant,defence,threat,metric,value,unit,ci_low,ci_high,n,seed,protocol,flags,"
        "majority,balanced,macro_f1,paper,ledger_sha256"
    )
    assert first.startswith('digits,cnn-s,Ours,"lambda1=0.1,lambda2=0.1",none,linf:8/255,autoattack,30.00,%,24.')
    again = read_csv(tmp_path / "table25.csv")
    assert len(again) == 9 * 2 * 2
    assert [cell_text(row.ci_low) for row in again] == [cell_text(row.ci_low) for row in rows]
    assert [(row.key, row.seed, row.flags, row.paper) for row in again] == [
        (row.key, row.seed, row.flags, row.paper) for row in rows
    ]


@pytest.mark.parametrize(("column", "text"), [("variant", "tau"), ("threat", "linf"), ("n", "many"), ("value", "x")])
def test_csv_with_bad_cell_is_refused(tmp_path: Path, column: str, text: str) -> None:
    make_ledger(tmp_path / "l.h5", 150, 50)
    write_csv(tmp_path / "t.csv", build([cell(tmp_path / "l.h5", variant="tau=1")]))
    head, first = (tmp_path / "t.csv").read_text().splitlines()
    values = first.split(",")
    values[COLUMNS.index(column)] = text
    (tmp_path / "t.csv").write_text(f"{head}\n{','.join(values)}\n")
    with pytest.raises(InputError, match=r"t\.csv"):
        read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\nx,y\n", "\x00\xff"])
def test_foreign_csv_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv"):
        read_csv(path)


def test_diversity_row_holds_the_records_figures(tmp_path: Path) -> None:
    sha = make_record(tmp_path / "r.json", 0.0625)
    rows = build([cell(tmp_path / "r.json", metric=metric, seed=2) for metric in ("coverage", "ndb", "jsd")])
    write_csv(tmp_path / "t.csv", rows)
    home = "digits,cnn-s,Ours,,none,linf:8/255"
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == [
        f"{home},coverage,0.016,1,,,997,2,coverage[teacher k=5 train],,,,,,{sha}",
        f"{home},ndb,88,bins,,,997,2,ndb[pixels K=100 alpha=0.05 train],,,,,,{sha}",
        f"{home},jsd,0.250,nat,,,997,2,jsd[pixels K=100 train],,,,,,{sha}",
    ]
    again = read_csv(tmp_path / "t.csv")
    assert [[row.text(name) for name in COLUMNS] for row in again] == [
        [row.text(name) for name in COLUMNS] for row in rows
    ]
    make_record(tmp_path / "r.json", real_data="train")
    assert build([cell(tmp_path / "r.json", metric="recall")])[0].flags == ("not-data-free",)


def test_record_of_another_cell_is_refused(tmp_path: Path) -> None:
    make_record(tmp_path / "r.json", model="cnn-m")
    with pytest.raises(InputError, match=r"r\.json: is of digits/cnn-m, not of digits/cnn-s"):
        build([cell(tmp_path / "r.json", metric="recall")])
    make_ledger(tmp_path / "l.h5", 150, 50)
    with pytest.raises(InputError, match=r"l\.h5: cannot be read as JSON"):
        build([cell(tmp_path / "l.h5", metric="recall")])
