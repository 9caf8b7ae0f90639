"""Distances in ledgers and what is read from them."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pytest
from scipy.stats import binom
from support.cells import cell
from support.ledgers import make_ledger

from dfshield.core.errors import InputError
from dfshield.evaluation.distances import largest, median, median_interval
from dfshield.evaluation.ledger import read_ledger, write_ledger
from dfshield.registry import metric, protocol_of
from dfshield.report.layout import measured
from dfshield.report.rows import COLUMNS, read_csv, write_csv
from dfshield.report.table import build
from dfshield.tools import export_csv
from dfshield.tools.inspect import describe_ledger


def made(path: Path, distances: list[float], **changes: Any) -> np.ndarray:
    """Write a ledger of C&W with these distances, sorted: those above 8/255 survive, those of 0 are clean errors."""
    values = np.sort(np.asarray(distances, np.float32))[::-1].copy()
    robust, clean = int((values > np.float32(8 / 255)).sum()), int((values > 0).sum())
    make_ledger(path, clean, robust, n=len(values), distances=values, protocol="cw", **changes)
    return values


def test_distances_are_read_as_they_were_written_and_are_part_of_the_hash(tmp_path: Path) -> None:
    values = made(tmp_path / "a.h5", [0, 0.01, 0.02, 0.3, np.inf])
    ledger = read_ledger(tmp_path / "a.h5")
    assert ledger.distances.dtype == np.float32 and np.array_equal(ledger.distances, values)
    assert ledger.robust_accuracy == 40
    assert write_ledger(tmp_path / "b.h5", ledger) == ledger.content_sha256
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5", "r+", libver="latest") as file:
        file["distances"][0] = 0.5
    with pytest.raises(InputError, match="does not match its SHA-256"):
        read_ledger(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "r+", libver="latest") as file:
        del file["distances"]
    with pytest.raises(InputError, match="does not match its SHA-256"):
        read_ledger(tmp_path / "b.h5")


def test_a_ledger_without_distances_has_no_data_set_of_them(tmp_path: Path) -> None:
    make_ledger(tmp_path / "a.h5", 8, 4, n=12)
    with h5py.File(tmp_path / "a.h5") as file:
        assert "distances" not in file
    assert read_ledger(tmp_path / "a.h5").distances.shape == (0,)


def test_a_data_set_elsewhere_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "a.h5", [0, 0.01, 0.3])
    with h5py.File(tmp_path / "a.h5", "r+", libver="latest") as file:
        del file["distances"]
        file["distances"] = h5py.SoftLink("/margin")
    with pytest.raises(InputError, match="distances"):
        read_ledger(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "distances",
    [
        np.array([0.3, 0.01], np.float32),
        np.array([0.3, 0.01, 0], np.float64),
        np.array([0.3, 0.01, 0.02], np.float32),  # a clean error has none
        np.array([0.3, 0, 0], np.float32),
        np.array([0.02, 0.01, 0], np.float32),  # survived, but within ε
        np.array([0.3, 0.04, 0], np.float32),  # broken, but beyond
        np.array([np.nan, np.nan, 0], np.float32),
    ],
)
def test_distances_that_contradict_the_verdicts_are_not_written(tmp_path: Path, distances: np.ndarray) -> None:
    made(tmp_path / "a.h5", [0, 0.01, 0.3])
    with pytest.raises(ValueError, match="distances"):
        write_ledger(tmp_path / "b.h5", replace(read_ledger(tmp_path / "a.h5"), distances=distances))


@pytest.mark.parametrize(
    ("distances", "middle", "end"),
    [([0.3], 0.3, 0.3), ([0.1, 0.4], 0.25, 0.4), ([0.3, 0, 0.1], 0.1, 0.3), ([0, np.inf, np.inf, 1], np.inf, np.inf)],
)
def test_median_and_largest_by_hand(distances: list[float], middle: float, end: float) -> None:
    values = np.array(distances, np.float32)
    assert (median(values), largest(values)) == (pytest.approx(middle), pytest.approx(end))


@pytest.mark.parametrize("n", [1, 5, 6, 7, 25, 100, 1001])
def test_ranks_of_the_medians_interval_are_the_binomials(n: int) -> None:
    """The median lies between the order statistics l and n + 1 - l unless fewer than l draws lie on one side of it."""
    low, high = median_interval(np.random.default_rng(n).permutation(n) + 1.0)
    fitting = [rank for rank in range(1, n + 1) if binom.cdf(rank - 1, n, 0.5) <= 0.025]
    assert (low, high) == ((fitting[-1], n + 1 - fitting[-1]) if fitting else (0, np.inf))
    assert bool(fitting) == (n >= 6)


def test_the_interval_covers_the_median_at_least_as_often_as_it_says() -> None:
    """Exactly: of all 2^8 ways in which 8 draws lie below or above the median, the shares that are covered."""
    covered = 0
    for above in itertools.product((False, True), repeat=8):
        low, high = median_interval(np.where(above, 2.0, 1.0) + np.arange(8) / 100)
        covered += low < 1.5 < high
    assert 0.95 <= covered / 2**8 < 1


def test_a_metrics_name_says_its_protocol_and_statistic() -> None:
    for name, protocol, statistic in (
        ("median-cw", "cw", "median"),
        ("largest-my-own", "my-own", "largest"),
        ("cw", "cw", ""),
        ("median-", "median-", ""),
        ("median", "median", ""),
    ):
        assert (protocol_of(name), metric(name).statistic) == (protocol, statistic)
    assert (metric("median-cw").title, metric("median-cw").unit, metric("median-cw").decimals) == ("C&W median", "1", 4)


def test_a_tables_cell_is_counted_by_hand(tmp_path: Path) -> None:
    """Of ten distances the middle two are 0.02 and 0.03; ranks 2 and 9 bound the median with 97.9 %."""
    made(tmp_path / "l.h5", [0, 0, 0.01, 0.015, 0.02, 0.03, 0.05, 0.06, 0.11, 0.7])
    cells = [cell(tmp_path / "l.h5", metric=name) for name in ("median-cw", "largest-cw", "cw", "clean")]
    rows = build(cells)
    write_csv(tmp_path / "t.csv", rows)
    text = (tmp_path / "t.csv").read_text().splitlines()
    assert ",median-cw,0.0250,1,0.0000,0.1100,10,0,cw,,,,,," in text[1]
    assert ",largest-cw,0.7000,1,,,10,0,cw,,,,,," in text[2]
    assert ",cw,40.00,%," in text[3] and ",clean,80.00,%," in text[4]
    again = read_csv(tmp_path / "t.csv")
    assert [[row.text(name) for name in COLUMNS] for row in again] == [
        [row.text(name) for name in COLUMNS] for row in rows
    ]
    values = list(measured(rows).values())
    assert values[0].interval == (0, pytest.approx(0.11)) and values[1].interval is None and values[0].places == 4


def test_what_survives_everything_is_infinite_over_seeds_too(tmp_path: Path) -> None:
    made(tmp_path / "a.h5", [0, 0.01, np.inf], seed=0)
    made(tmp_path / "b.h5", [0, 0.01, 0.2], seed=1)
    rows = build([cell(tmp_path / f"{name}.h5", metric="largest-cw", seed=i) for i, name in enumerate("ab")])
    write_csv(tmp_path / "t.csv", rows)
    assert [row.text("value") for row in read_csv(tmp_path / "t.csv")] == ["inf", "0.2000"]
    (value,) = measured(rows).values()
    assert (value.mean, value.spread, value.interval) == (np.inf, None, None)


def test_a_ledger_without_distances_or_of_another_protocol_is_refused(tmp_path: Path) -> None:
    make_ledger(tmp_path / "a.h5", 8, 4, n=12, protocol="cw")
    with pytest.raises(InputError, match="has no distances, which median-cw is of"):
        build([cell(tmp_path / "a.h5", metric="median-cw")])
    with pytest.raises(InputError, match="protocol is cw, not median-fab"):
        build([cell(tmp_path / "a.h5", metric="median-fab")])


def test_inspect_and_export_say_distances_where_there_are_some(tmp_path: Path) -> None:
    values = made(tmp_path / "a.h5", [0, 0.01, 0.02, 0.3, np.inf, 0.4])
    export_csv.run(tmp_path / "a.h5", tmp_path / "a.csv")
    assert pandas.read_csv(tmp_path / "a.csv")["distance"].to_numpy() == pytest.approx(values)
    said = dict(describe_ledger(read_ledger(tmp_path / "a.h5")))["distances"]
    assert said == "median 0.1600, 95 % interval 0.0000 to inf; nothing survives at inf"
    make_ledger(tmp_path / "b.h5", 8, 4, n=12)
    assert "distances" not in dict(describe_ledger(read_ledger(tmp_path / "b.h5")))
