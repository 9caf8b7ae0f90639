"""The paper's numbers: counts and spot values of the CSVs, and that table specifications fit them."""

import itertools
from pathlib import Path

import pytest
from support.paper import (
    ACCURACIES,
    AUGMENTATIONS,
    BASELINES,
    CASTS,
    DIVERSITY,
    EPSILONS,
    GENERAL,
    LOSSES,
    MEDICAL,
    MEDICAL_DATASETS,
    MODIFIED,
    NUMBERS,
    STEPS,
    figures,
    part,
    same,
)

from dfshield.planning.cells import variant
from dfshield.planning.tables import load_tables
from dfshield.registry import DATASETS, MODELS
from dfshield.report.published import Published, figure, published

TABLES = load_tables(Path(__file__).parents[2] / "config" / "tables.yaml")

TEST_TIME = ("DAD", "DiffPure", "TTE", "Ours")
GRIDS = {
    1: (("tissuemnist", "bloodmnist", "pathmnist", "organcmnist"), MEDICAL, ("Public", *BASELINES), ACCURACIES),
    5: (("svhn", "cifar10", "cifar100"), GENERAL, ("AIT", "Ours"), ACCURACIES),
    6: (("cifar10",), ("wrn28_10",), ("Qimera", "RDSKD", "IntraQ", *AUGMENTATIONS), (*ACCURACIES, *DIVERSITY)),
    7: (("svhn", "cifar10"), ("wrn28_10",), LOSSES, ACCURACIES),
    8: (("cifar10",), GENERAL, ("Base", "+ L_DFShield", "+ DSS", "+ GradRefine"), ("clean", "autoattack")),
    9: (("svhn", "cifar10"), GENERAL, ("Ours",), CASTS),
    3: (("tissuemnist", "bloodmnist", "pathmnist", "organcmnist"), MEDICAL, TEST_TIME, ACCURACIES),
    10: (("svhn", "cifar10"), GENERAL, ("Ours",), STEPS),
    11: (MEDICAL_DATASETS, MEDICAL, ("Undefended",), ("clean",)),
    12: (("dermamnist", "octmnist", "organamnist", "organsmnist"), MEDICAL, ("Public", *BASELINES), ACCURACIES),
    13: (("dermamnist", "octmnist", "organamnist", "organsmnist"), MEDICAL, TEST_TIME, ACCURACIES),
    14: (("svhn",), GENERAL, ("Original", *BASELINES), ACCURACIES, EPSILONS),
    15: (("cifar10",), GENERAL, ("Original", *BASELINES), ACCURACIES, EPSILONS),
    16: (("svhn",), GENERAL, LOSSES, ACCURACIES),
    17: (("cifar10",), GENERAL, LOSSES, ACCURACIES),
    18: (tuple(d for d in MEDICAL_DATASETS if d != "octmnist"), MEDICAL, ("Original", "Public", "Ours"), ACCURACIES),
    19: (("svhn",), GENERAL, AUGMENTATIONS, (*ACCURACIES, *DIVERSITY)),
    20: (("cifar10",), GENERAL, AUGMENTATIONS, (*ACCURACIES, *DIVERSITY)),
    21: (("svhn", "cifar10"), GENERAL, ("Ours",), MODIFIED),
    22: (("tissuemnist", "bloodmnist", "pathmnist", "organcmnist"), MEDICAL[:1], ("Ours",), MODIFIED),
}
"""What the tables without a sweep of options hold: all of data sets × models × methods × metrics (× threats)."""

NOT_ON_FILE = ("losses", "attacks", "static-adaptive", "certified", "detection")
NOT_ON_FILE += ("transformation-table4", "transformation-delta", "transformation-draws", "transformation-attacks")
NOT_ON_FILE += ("transfer-epsilons", "transfer-times", "epsilons", "landscape", "coefficients", "toy")
NOT_ON_FILE += ("figure1b", "transformation-steps")
"""Tables of our own."""
NOT_BUILT = {
    "transfer-table1": {"MACER", "EBM-Defense", "DensePure"},
    "transfer-table3": {"MACER", "EBM-Defense"},
}
"""Methods of other publications whose figures are on file, but which are none of ours."""


@pytest.mark.parametrize(
    ("number", "count"),
    [
        (1, 4 * 2 * 6 * 3),
        (3, 4 * 4 * 2 * 3),
        (4, 3 * 5 * 3 * 3 + 2 * 3 * 3),
        (5, 3 * 2 * 3 * 3),
        (6, 8 * 7),
        (7, 6 * 2 * 3),
        (8, 3 * 4 * 2),
        (9, 2 * 3 * 7),
        (10, 2 * 3 * 7),
        (11, 8 * 2),
        (12, 4 * 2 * 6 * 3),
        (13, 4 * 4 * 2 * 3),
        (14, 4 * 6 * 3 * 3),
        (15, 4 * 6 * 3 * 3),
        (16, 6 * 3 * 3),
        (17, 6 * 3 * 3),
        (18, 7 * 3 * 2 * 3),
        (19, 3 * 5 * 7),
        (20, 3 * 5 * 7),
        (21, 2 * 3 * 7),
        (22, 4 * 7),
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
    assert all(entry.value <= 1 for entry in entries if entry.metric in ("recall", "coverage", "jsd"))
    assert all(entry.value == int(entry.value) >= 80 for entry in entries if entry.metric == "ndb")


@pytest.mark.parametrize("number", GRIDS)
def test_rows_and_columns(number: int) -> None:
    datasets, models, methods, metrics, *threats = GRIDS[number]
    expected = itertools.product(datasets, models, methods, [""], metrics, *(threats or [[""]]))
    assert {entry.key for entry in published(number)} == set(expected)
    assert set(datasets) <= set(DATASETS)
    assert set(models) <= set(MODELS)


@pytest.mark.parametrize(
    ("number", "key", "value"),
    [
        (1, ("tissuemnist", "resnet18", "Public", "", "clean"), 22.04),
        (1, ("organcmnist", "resnet18", "AIT", "", "clean"), 56.85),
        (1, ("pathmnist", "resnet50", "DFME", "", "clean"), 80.10),
        (1, ("bloodmnist", "resnet50", "DFARD", "", "pgd10"), 9.21),
        (1, ("organcmnist", "resnet50", "Ours", "", "autoattack"), 59.86),
        (3, ("tissuemnist", "resnet18", "DAD", "", "clean"), 55.86),
        (3, ("bloodmnist", "resnet18", "TTE", "", "autoattack"), 8.92),
        (3, ("pathmnist", "resnet50", "DiffPure", "", "pgd10"), 14.26),
        (3, ("organcmnist", "resnet50", "Ours", "", "autoattack"), 59.86),
        (4, ("svhn", "wrn28_10", "Ours", "", "autoattack"), 62.66),
        (4, ("cifar10", "resnet20", "AIT", "", "pgd10"), 11.93),
        (4, ("cifar100", "resnet56", "DFME", "", "clean"), 24.16),
        (4, ("cifar10", "wrn28_10", "Original", "", "autoattack"), 62.84),
        (4, ("svhn", "resnet20", "Original", "", "clean"), 93.19),
        (5, ("svhn", "resnet20", "AIT", "", "clean"), 92.34),
        (5, ("cifar10", "resnet56", "AIT", "", "autoattack"), 0.49),
        (5, ("svhn", "wrn28_10", "Ours", "", "pgd10"), 66.28),
        (5, ("cifar100", "wrn28_10", "Ours", "", "autoattack"), 17.14),
        (6, ("cifar10", "wrn28_10", "Qimera", "", "clean"), 76.88),
        (6, ("cifar10", "wrn28_10", "RDSKD", "", "jsd"), 0.658),
        (6, ("cifar10", "wrn28_10", "IntraQ", "", "pgd10"), 36.13),
        (6, ("cifar10", "wrn28_10", "IntraQ", "", "ndb"), 88),
        (6, ("cifar10", "wrn28_10", "+ CutMix", "", "recall"), 0.845),
        (6, ("cifar10", "wrn28_10", "+ DSS", "", "jsd"), 0.211),
        (7, ("svhn", "wrn28_10", "STD", "", "clean"), 93.71),
        (7, ("cifar10", "wrn28_10", "MART", "", "clean"), 13.69),
        (7, ("svhn", "wrn28_10", "RSLAD", "", "autoattack"), 57.04),
        (7, ("cifar10", "wrn28_10", "L_DFShield", "", "autoattack"), 41.40),
        (8, ("cifar10", "wrn28_10", "+ L_DFShield", "", "autoattack"), 36.34),
        (8, ("cifar10", "resnet56", "Base", "", "clean"), 78.22),
        (9, ("svhn", "resnet20", "Ours", "", "genattack"), 90.28),
        (9, ("svhn", "resnet56", "Ours", "", "a3"), 57.28),
        (9, ("svhn", "wrn28_10", "Ours", "", "spsa"), 70.01),
        (9, ("cifar10", "resnet20", "Ours", "", "boundary"), 74.73),
        (9, ("cifar10", "wrn28_10", "Ours", "", "automated"), 43.72),
        (10, ("svhn", "resnet20", "Ours", "", "pgd1"), 85.86),
        (10, ("svhn", "wrn28_10", "Ours", "", "pgd20"), 68.76),
        (10, ("cifar10", "resnet56", "Ours", "", "pgd2"), 59.98),
        (10, ("cifar10", "wrn28_10", "Ours", "", "pgd5"), 53.26),
        (11, ("tissuemnist", "resnet18", "Undefended", "", "clean"), 67.62),
        (11, ("octmnist", "resnet50", "Undefended", "", "clean"), 84.90),
        (11, ("organsmnist", "resnet50", "Undefended", "", "clean"), 78.37),
        (12, ("dermamnist", "resnet18", "Public", "", "clean"), 67.48),
        (12, ("octmnist", "resnet18", "DFARD", "", "clean"), 69.10),
        (12, ("organamnist", "resnet50", "DFARD", "", "pgd10"), 22.60),
        (12, ("octmnist", "resnet50", "Ours", "", "autoattack"), 17.59),
        (12, ("organsmnist", "resnet50", "Ours", "", "autoattack"), 33.63),
        (13, ("dermamnist", "resnet18", "TTE", "", "pgd10"), 15.81),
        (13, ("octmnist", "resnet50", "DiffPure", "", "pgd10"), 29.10),
        (13, ("organsmnist", "resnet50", "DAD", "", "autoattack"), 5.84),
        (16, ("svhn", "resnet20", "STD", "", "clean"), 23.34),
        (16, ("svhn", "resnet56", "TRADES", "", "autoattack"), 20.87),
        (16, ("svhn", "resnet20", "MART", "", "clean"), 63.36),
        (16, ("svhn", "wrn28_10", "L_DFShield", "", "autoattack"), 65.66),
        (17, ("cifar10", "resnet20", "STD", "", "clean"), 23.51),
        (17, ("cifar10", "resnet56", "STD", "", "autoattack"), 0.12),
        (17, ("cifar10", "resnet56", "RSLAD", "", "pgd10"), 19.59),
        (17, ("cifar10", "wrn28_10", "L_DFShield", "", "autoattack"), 41.40),
        (18, ("tissuemnist", "resnet18", "Original", "", "clean"), 50.33),
        (18, ("dermamnist", "resnet50", "Original", "", "autoattack"), 60.14),
        (18, ("organamnist", "resnet50", "Original", "", "pgd10"), 82.73),
        (18, ("organsmnist", "resnet50", "Ours", "", "autoattack"), 33.63),
        (19, ("svhn", "resnet20", "Base", "", "clean"), 93.31),
        (19, ("svhn", "resnet20", "+ Cutout", "", "autoattack"), 48.29),
        (19, ("svhn", "resnet56", "+ CutMix", "", "autoattack"), 55.38),
        (19, ("svhn", "resnet56", "+ DSS", "", "coverage"), 0.521),
        (19, ("svhn", "wrn28_10", "Base", "", "recall"), 0.246),
        (19, ("svhn", "wrn28_10", "+ DSS", "", "jsd"), 0.190),
        (20, ("cifar10", "resnet20", "Base", "", "clean"), 82.58),
        (20, ("cifar10", "resnet20", "+ Mixup", "", "autoattack"), 5.95),
        (20, ("cifar10", "resnet56", "+ DSS", "", "ndb"), 84),
        (20, ("cifar10", "wrn28_10", "+ Cutout", "", "jsd"), 0.443),
        (20, ("cifar10", "wrn28_10", "+ DSS", "", "jsd"), 0.211),
        (21, ("svhn", "resnet20", "Ours", "", "latent"), 74.38),
        (21, ("svhn", "wrn28_10", "Ours", "", "modified-c"), 70.08),
        (21, ("cifar10", "resnet20", "Ours", "", "modified-b"), 31.05),
        (21, ("cifar10", "resnet56", "Ours", "", "modified-a"), 60.61),
        (22, ("tissuemnist", "resnet18", "Ours", "", "modified-a"), 31.98),
        (22, ("bloodmnist", "resnet18", "Ours", "", "modified-c"), 24.12),
        (22, ("pathmnist", "resnet18", "Ours", "", "latent"), 29.81),
        (22, ("organcmnist", "resnet18", "Ours", "", "autoattack"), 45.18),
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
    assert figures(number)[key] == value  # type: ignore[index]


@pytest.mark.parametrize(
    ("number", "eps", "key", "value"),
    [
        (14, 2, ("svhn", "resnet20", "Original", "", "clean"), 95.42),
        (14, 2, ("svhn", "wrn28_10", "DaST", "", "autoattack"), 9.49),
        (14, 2, ("svhn", "resnet56", "Ours", "", "pgd10"), 80.32),
        (14, 4, ("svhn", "resnet20", "DFARD", "", "autoattack"), 19.68),
        (14, 6, ("svhn", "resnet56", "DFME", "", "clean"), 97.34),
        (14, 6, ("svhn", "wrn28_10", "Original", "", "autoattack"), 57.36),
        (14, 8, ("svhn", "wrn28_10", "DFARD", "", "clean"), 93.07),
        (14, 8, ("svhn", "wrn28_10", "Ours", "", "autoattack"), 31.77),
        (15, 2, ("cifar10", "resnet20", "Original", "", "clean"), 78.82),
        (15, 2, ("cifar10", "resnet56", "AIT", "", "pgd10"), 33.66),
        (15, 6, ("cifar10", "wrn28_10", "AIT", "", "clean"), 63.61),
        (15, 6, ("cifar10", "resnet56", "DFARD", "", "clean"), 95.27),
        (15, 8, ("cifar10", "resnet20", "DaST", "", "clean"), 10.00),
        (15, 8, ("cifar10", "wrn28_10", "Ours", "", "autoattack"), 14.79),
    ],
)
def test_spot_values_by_threat(number: int, eps: int, key: tuple[str, ...], value: float) -> None:
    assert figures(number, f"linf:{eps}/255")[key] == value  # type: ignore[index]


def test_default_setting_agrees_across_tables() -> None:
    """Where τ, B and λ are the defaults, the sweeps repeat Table 4 (but for B = 20 on ResNet-20, which is flagged)."""
    main = {entry.key[:5]: entry for entry in published(4)}
    for number, default in ((23, "B=20"), (24, "tau=0.5"), (25, "lambda1=1,lambda2=1"), (26, "lambda1=1,lambda2=1")):
        for entry in published(number):
            if entry.variant == default:
                same = main[(*entry.key[:3], "", entry.metric)].value == entry.value
                assert same != ("differs-from-table4" in entry.flags), entry


@pytest.mark.parametrize(("number", "dataset"), [(14, "svhn"), (15, "cifar10")])
def test_sweeps_over_threats_repeat_table_4(number: int, dataset: str) -> None:
    """Their blocks at 4/255 are Table 4's, but for two of SVHN's rows, which are flagged."""
    main = part(4, (dataset,), same(("Original", *BASELINES)))
    differ = []
    for entry in published(number):
        if entry.threat == "linf:4/255":
            equal = main[(*entry.key[:3], entry.metric)] == entry.value
            assert equal != ("differs-from-table4" in entry.flags), entry
            differ += [] if equal else [entry.key[1:3]]
    assert list(dict.fromkeys(differ)) == ([("resnet56", "DaST"), ("resnet20", "DFARD")] if dataset == "svhn" else [])
    assert len(main) == 6 * 3 * 3


def test_tables_repeat_one_another() -> None:
    c10, svhn = ("cifar10",), ("svhn",)
    losses = part(16, svhn, same(LOSSES)) | part(17, c10, same(LOSSES))
    assert part(7, (*svhn, *c10), same(LOSSES)) == {k: v for k, v in losses.items() if k[1] == "wrn28_10"}
    diverse = part(20, c10, same(AUGMENTATIONS))
    assert part(6, c10, same(AUGMENTATIONS)) == {k: v for k, v in diverse.items() if k[1] == "wrn28_10"}
    for number, dataset in ((19, svhn), (20, c10)):
        dss = part(number, dataset, {"+ DSS": "L_DFShield"})
        own = {k: v for k, v in losses.items() if k[0] in dataset and k[2] == "L_DFShield"}
        assert own == {k: v for k, v in dss.items() if k[3] not in DIVERSITY}
    assert part(8, c10, {"+ L_DFShield": "Base", "+ DSS": "+ DSS"}).items() <= diverse.items()
    assert part(8, c10, {"+ GradRefine": "Ours"}).items() <= part(4, c10, {"Ours": "Ours"}).items()
    for model, metric in itertools.product(("resnet20", "wrn28_10"), ACCURACIES):  # B = 1: no GradRefine
        assert figures(23)["cifar10", model, "Ours", "B=1", metric] == diverse["cifar10", model, "+ DSS", metric]


def test_real_data_comparison_repeats_the_medical_tables() -> None:
    methods = same(("Public", "Ours"))
    repeated = part(1, MEDICAL_DATASETS, methods) | part(12, MEDICAL_DATASETS, methods)
    assert part(18, MEDICAL_DATASETS, methods) == {k: v for k, v in repeated.items() if k[0] != "octmnist"}


@pytest.mark.parametrize("number", [n for n in NUMBERS if n not in (8, 9, 10, 11, 25, 26)])
def test_stronger_attacks_leave_less(number: int) -> None:
    """Clean ≥ PGD ≥ AutoAttack; where the paper prints otherwise, a flag says so."""
    rows: dict[tuple[str, ...], dict[str, Published]] = {}
    for entry in published(number):
        rows.setdefault((*entry.key[:4], entry.threat), {})[entry.metric] = entry
    for row in rows.values():
        clean, pgd, autoattack = (row[metric] for metric in ACCURACIES)
        assert (pgd.value > clean.value) == ("pgd-above-clean" in pgd.flags), pgd
        assert (autoattack.value > pgd.value) == ("autoattack-above-pgd" in autoattack.flags), autoattack


def test_attack_tables_repeat_table_4_and_one_another() -> None:
    """Clean, PGD-10 and AutoAttack are Table 4's; more steps break more, and no bound leaves nothing."""
    main, general = part(4, ("svhn", "cifar10"), same(("Ours",))), ("svhn", "cifar10")
    for number in (9, 10, 21):
        shared = {k: v for k, v in part(number, general, same(("Ours",))).items() if k[3] in ACCURACIES}
        assert len(shared) == 6 * {9: 2, 10: 2, 21: 3}[number]
        assert shared.items() <= main.items()
    steps = figures(10)
    for dataset, model in itertools.product(general, GENERAL):
        row = [steps[dataset, model, "Ours", "", metric] for metric in STEPS]
        assert row == sorted(row, reverse=True) and row[-1] == 0


@pytest.mark.parametrize(
    ("number", "metric", "total"),
    [
        (9, "genattack", 507.94),
        (9, "spsa", 332.00),
        (9, "automated", 264.68),
        (10, "pgd1", 475.26),
        (10, "pgd20", 296.87),
        (21, "modified-a", 416.03),
        (21, "modified-c", 306.00),
        (22, "latent", 158.80),
        (22, "modified-b", 135.09),
    ],
)
def test_columns_of_the_attack_tables_add_up(number: int, metric: str, total: float) -> None:
    assert sum(entry.value for entry in published(number) if entry.metric == metric) == pytest.approx(total, abs=1e-6)


MEDICAL_TABLES = dict.fromkeys((1, 3, 11, 12, 13, 18, 22), ("linf:8/255",))
PAPERS_THREATS = MEDICAL_TABLES | {5: ("l2:128/255",), 14: EPSILONS, 15: EPSILONS}


@pytest.mark.parametrize("key", TABLES)
def test_specification_covers_the_published_table(key: str) -> None:
    spec = TABLES[key]
    if spec.figure or not spec.metrics or key in NOT_ON_FILE:
        assert not published(spec.on_file)
        return
    entries = published(spec.on_file)
    assert len({entry.key for entry in entries}) == len(entries)
    assert {entry.dataset for entry in entries} == set(spec.paper.datasets)
    assert set(spec.paper.datasets) <= set(DATASETS) or not spec.stands_in
    assert {entry.model for entry in entries} == set(spec.paper.models) <= set(MODELS)
    assert {entry.metric for entry in entries} == set(spec.metrics)
    default = ("linf:8/255",) if spec.of else ("linf:4/255",)
    expected = PAPERS_THREATS.get(spec.number, default)
    assert spec.papers_threats == expected
    assert {entry.threat for entry in entries} == (set(expected) if len(expected) > 1 else {""})
    combinations = [{}]
    for option, values in spec.sweep.items():
        combinations = [c | {option: value} for c in combinations for value in values.full]
        assert set(values.demo) <= set(values.full) | {5}
    assert {entry.variant for entry in entries} == {variant(c) for c in combinations}
    rows, printed = {row.method for row in spec.rows if row.fits(stand_in=False)}, {entry.method for entry in entries}
    assert rows - printed <= {"Undefended", "Original"} and printed - rows <= NOT_BUILT.get(key, set()), printed ^ rows


def test_unknown_table_has_no_numbers() -> None:
    assert published(99) == ()


@pytest.mark.parametrize(
    ("number", "threat", "value"),
    [
        (14, "linf:2/255", 12.33),
        (14, "linf:8/255", 2.07),
        (14, "linf:0.03137254901960784", 2.07),  # the same size
        (14, "linf:3/255", None),
        (14, "l2:2/255", None),
        (4, "linf:4/255", 7.06),
        (4, "linf:8/255", 7.06),  # whoever asks for a figure of a table over one threat has compared that
        (0, "linf:4/255", None),
    ],
)
def test_a_figure_by_a_rows_key(number: int, threat: str, value: float | None) -> None:
    assert figure(number, ("svhn", "resnet20", "DaST", "", "autoattack", threat)) == value


def test_zero_is_a_figure() -> None:
    assert figure(15, ("cifar10", "wrn28_10", "DFME", "", "autoattack", "linf:2/255")) == 0.0
