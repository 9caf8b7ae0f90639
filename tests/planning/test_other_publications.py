"""Figures of other publications than the paper: counts, sums and what is odd in print."""

from pathlib import Path

import pytest
from support.paper import OTHER_PAPERS

from dfshield.planning.tables import load_tables
from dfshield.report.published import printed_notes, published

TABLES = load_tables(Path(__file__).parents[2] / "config" / "tables.yaml")
KINDS = ("gaussian-noise", "glass-blur", "impulse-noise", "jpeg-compression", "shot-noise")


def test_the_tables_of_distribution_transfer() -> None:
    """Counts, sums by column and row, and what is odd in print."""
    static, adaptive, corrupted = (published(f"transfer-table{number}") for number in (1, 2, 3))
    assert (len(static), len(adaptive), len(corrupted)) == (13 * 3, 5 * 2, 5 * 2 * 5 + 6 * 5)
    sums = {}
    for entry in static:
        sums[entry.model, entry.metric] = sums.get((entry.model, entry.metric), 0) + entry.value
    assert [round(sums["resnet18", metric], 1) for metric in ("clean", "pgd40-static", "pgd40-static-l2")] == [
        537.9,
        417.8,
        468.7,
    ]
    assert [round(sums["wrn28_10", metric], 1) for metric in ("clean", "pgd40-static", "pgd40-static-l2")] == [
        456.6,
        355.0,
        387.6,
    ]
    assert round(sum(entry.value for entry in adaptive), 1) == 833.3
    by = {entry.key[1:5]: entry for entry in corrupted}
    models = ("mobilenetv2", "shufflenetv2", "resnet56", "resnet18", "wrn28_10")
    for method, totals in (
        ("Distribution transfer", (414.6, 441.2, 419.5, 423.1, 404.8)),
        ("Undefended", (331.2, 377.7, 336.6, 342.0, 330.0)),
    ):
        sums = tuple(round(sum(by[model, method, "", kind].value for kind in KINDS), 1) for model in models)
        assert sums == totals, method
    assert by["resnet18", "EBM-Defense", "", "glass-blur"].value == 48.5
    assert {entry.metric for entry in corrupted} == set(KINDS)
    clean = {(entry.model, entry.method): entry.value for entry in static if entry.metric == "clean"}
    for entry in static:
        above = entry.metric == "pgd40-static-l2" and entry.value > clean[entry.model, entry.method]
        assert above == ("attacked-above-clean" in entry.flags), entry
    own = {entry.model: entry.value for entry in static if entry.metric == "pgd40-static"}
    for entry in adaptive:
        above = entry.metric == "pgd40" and entry.value > own.get(entry.model, 100)
        assert above == ("adaptive-above-static" in entry.flags), entry


@pytest.mark.parametrize("key", OTHER_PAPERS)
def test_tables_of_other_publications(key: str) -> None:
    """Their figures by hand from the print: as many, and the same accuracy of the same model wherever it stands."""
    entries = published(key)
    assert TABLES[key].on_file == key and TABLES[key].printed.endswith("of Xiao and Zheng 2020")
    assert len(entries) == OTHER_PAPERS[key]
    own = {("Adv. trained", "clean"), ("13 steps", "clean"), ("Transformed", "clean")}
    clean = [e.value for e in entries if (e.method, e.metric) in own and e.dataset == "cifar10"]
    assert clean == ([82.9] if key != "transformation-table6" else [])
    assert {flag for entry in entries for flag in entry.flags} <= set(printed_notes())


def test_tables_of_other_publications_contradict_one_another_where_a_flag_says_so() -> None:
    found = {
        (entry.method, entry.value): entry.flags
        for key in OTHER_PAPERS
        for entry in published(key)
        if entry.metric == "pgd-adaptive" and entry.method in ("Adv. trained", "Transformed")
    }
    assert found == {
        ("Adv. trained", 80.5): ("differs-from-their-table3",),
        ("Transformed", 80.2): ("differs-from-their-table1",),
        ("Transformed", 47.9): (),
    }
    spots = {(e.method, e.metric): e.value for e in published("transformation-table5")}
    assert (spots["4 steps", "few-steps-2"], spots["8 steps", "few-steps-1"]) == (66.4, 81.6)
