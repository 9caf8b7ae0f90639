"""The paper's numbers: counts, spot values and flags of the CSVs, and that table specifications fit them."""

from pathlib import Path

import pytest

from dfshield.registry import DATASETS, MODELS
from dfshield.report.cells import load_tables, variant
from dfshield.report.flags import NOTES
from dfshield.report.published import published
from dfshield.threat import parse_threat

TABLES = load_tables(Path(__file__).parents[1] / "config" / "tables.yaml")


@pytest.mark.parametrize(
    ("number", "count"),
    [
        (4, 3 * 5 * 3 * 3 + 2 * 3 * 3),
        (6, 8 * 7),
        (8, 3 * 4 * 2),
        (19, 3 * 5 * 7),
        (20, 3 * 5 * 7),
        (23, 7 * 2 * 3),
        (24, 11 * 2 * 3),
        (25, 216),
        (26, 216),
    ],
)
def test_counts(number: int, count: int) -> None:
    entries = published(number)
    assert len(entries) == count
    assert len({entry.key for entry in entries}) == count
    assert all(0 <= entry.value <= 100 for entry in entries)


@pytest.mark.parametrize(
    ("number", "key", "value"),
    [
        (4, ("svhn", "wrn28_10", "Ours", "", "autoattack"), 62.66),
        (4, ("cifar10", "resnet20", "AIT", "", "pgd10"), 11.93),
        (4, ("cifar100", "resnet56", "DFME", "", "clean"), 24.16),
        (4, ("cifar10", "wrn28_10", "Original", "", "autoattack"), 62.84),
        (4, ("svhn", "resnet20", "Original", "", "clean"), 93.19),
        (6, ("cifar10", "wrn28_10", "IntraQ", "", "pgd10"), 36.13),
        (6, ("cifar10", "wrn28_10", "Qimera", "", "ndb"), 99),
        (6, ("cifar10", "wrn28_10", "+ Cutout", "", "coverage"), 0.034),
        (19, ("svhn", "resnet56", "+ CutMix", "", "autoattack"), 55.38),
        (19, ("svhn", "wrn28_10", "Base", "", "recall"), 0.246),
        (19, ("svhn", "resnet20", "+ DSS", "", "jsd"), 0.237),
        (20, ("cifar10", "resnet20", "+ Mixup", "", "autoattack"), 5.95),
        (20, ("cifar10", "resnet56", "+ DSS", "", "coverage"), 0.55),
        (8, ("cifar10", "wrn28_10", "+ L_DFShield", "", "autoattack"), 36.34),
        (8, ("cifar10", "resnet56", "Base", "", "clean"), 78.22),
        (23, ("cifar10", "resnet20", "Ours", "B=40", "clean"), 28.87),
        (24, ("svhn", "wrn28_10", "Ours", "tau=0.3", "pgd10"), 69.13),
        (24, ("cifar10", "wrn28_10", "Ours", "tau=1", "autoattack"), 39.12),
        (25, ("svhn", "resnet56", "Ours", "lambda1=0.1,lambda2=1", "autoattack"), 58.01),
        (25, ("svhn", "wrn28_10", "Ours", "lambda1=10,lambda2=100", "clean"), 67.03),
        (26, ("cifar10", "resnet20", "Ours", "lambda1=1,lambda2=0.01", "clean"), 78.59),
        (26, ("cifar10", "wrn28_10", "Ours", "lambda1=100,lambda2=0", "autoattack"), 15.75),
    ],
)
def test_spot_values(number: int, key: tuple[str, ...], value: float) -> None:
    assert {entry.key: entry.value for entry in published(number)}[key] == value  # type: ignore[index]


def test_default_setting_agrees_across_tables() -> None:
    """Where τ, B and λ are the defaults, the sweeps repeat Table 4 (but for B = 20 on ResNet-20, which is flagged)."""
    main = {entry.key: entry for entry in published(4)}
    for number, default in ((23, "B=20"), (24, "tau=0.5"), (25, "lambda1=1,lambda2=1"), (26, "lambda1=1,lambda2=1")):
        for entry in published(number):
            if entry.variant == default:
                same = main[(*entry.key[:3], "", entry.metric)].value == entry.value
                assert same != ("differs-from-table4" in entry.flags), entry


def test_tables_of_diversification_agree() -> None:
    """Table 6 repeats WRN-28-10 of Table 20, and the base and DSS rows are the middle rows of Table 8."""
    small, large, ablation = ({entry.key: entry.value for entry in published(number)} for number in (6, 20, 8))
    shared = small.keys() & large.keys()
    assert len(shared) == 5 * 7
    assert all(small[key] == large[key] for key in shared)
    for model in ("resnet20", "resnet56", "wrn28_10"):
        for method, same in (("Base", "+ L_DFShield"), ("+ DSS", "+ DSS")):
            for metric in ("clean", "autoattack"):
                key = ("cifar10", model, method, "", metric)
                assert large[key] == ablation[("cifar10", model, same, "", metric)]


def test_flags_are_explained_and_daggers_are_those_printed() -> None:
    flags = [
        flag for number in (4, 6, 8, 19, 20, 23, 24, 25, 26) for entry in published(number) for flag in entry.flags
    ]
    assert set(flags) <= set(NOTES)
    daggers = [entry.key[:3] for entry in published(4) if "did-not-converge" in entry.flags]
    assert daggers == [
        ("cifar10", "resnet20", "DaST"),
        ("cifar10", "wrn28_10", "DaST"),
        ("cifar10", "wrn28_10", "DFME"),
        ("cifar100", "resnet20", "DaST"),
    ]


@pytest.mark.parametrize("key", TABLES)
def test_specification_covers_the_published_table(key: str) -> None:
    spec = TABLES[key]
    entries = published(spec.number)
    assert {entry.dataset for entry in entries} == set(spec.paper.datasets) <= set(DATASETS)
    assert {entry.model for entry in entries} == set(spec.paper.models) <= set(MODELS)
    assert {entry.metric for entry in entries} == set(spec.metrics)
    assert parse_threat(spec.paper.threat) == ("linf", 4 / 255)
    combinations = [{}]
    for option, values in spec.sweep.items():
        combinations = [c | {option: value} for c in combinations for value in values.full]
        assert set(values.demo) <= set(values.full) | {5}
    assert {entry.variant for entry in entries} == {variant(c) for c in combinations}
    assert {row.method for row in spec.rows} & {entry.method for entry in entries}


def test_unknown_table_has_no_numbers() -> None:
    assert published(99) == ()
