"""What is odd in the paper's tables has a flag, every flag is explained, and no other figure has one."""

import pytest
from support.paper import AUGMENTATIONS, CASTS, MODIFIED, NUMBERS, figures, part

from dfshield.report.notes import NOTES
from dfshield.report.published import printed_notes, published


def test_flags_are_explained() -> None:
    tables = (*NUMBERS, *(f"transfer-table{number}" for number in (1, 2, 3)))
    flags = [flag.partition(":")[0] for table in tables for entry in published(table) for flag in entry.flags]
    assert set(flags) <= {*NOTES, *printed_notes()}


DAGGERS = {
    1: "bloodmnist/resnet18/Public pathmnist/resnet18/Public bloodmnist/resnet50/Public",
    4: "cifar10/resnet20/DaST cifar10/wrn28_10/DaST cifar10/wrn28_10/DFME cifar100/resnet20/DaST",
    6: "cifar10/wrn28_10/RDSKD",
    14: """svhn/resnet56/DaST/4 svhn/resnet20/DFME/4 svhn/resnet56/DFME/4 svhn/wrn28_10/DFME/4 svhn/resnet20/DFME/6
        svhn/resnet56/DaST/8 svhn/wrn28_10/DFME/8""",
    15: """cifar10/resnet20/DaST/2 cifar10/resnet20/DaST/4 cifar10/wrn28_10/DaST/4 cifar10/wrn28_10/DFME/4
        cifar10/resnet20/DaST/6 cifar10/resnet56/DaST/6 cifar10/resnet20/DFME/6 cifar10/resnet20/DaST/8
        cifar10/resnet56/DaST/8 cifar10/wrn28_10/DaST/8 cifar10/resnet56/DFME/8 cifar10/wrn28_10/DFME/8
        cifar10/resnet56/AIT/8 cifar10/wrn28_10/AIT/8""",
}


@pytest.mark.parametrize("number", NUMBERS)
def test_daggers_are_those_printed(number: int) -> None:
    marked = [entry for entry in published(number) if "did-not-converge" in entry.flags]
    names = [
        "/".join([*e.key[:3], *(e.threat.removeprefix("linf:").split("/")[:1] if e.threat else [])]) for e in marked
    ]
    assert names == DAGGERS.get(number, "").split()
    assert {entry.metric for entry in marked} <= {"clean"}


def test_flags_that_follow_from_the_figures() -> None:
    general = ("svhn", "cifar10", "cifar100")
    linf = part(4, general, {"Ours": "Ours"})
    for entry in published(5):
        below = (
            entry.method == "Ours"
            and entry.metric == "autoattack"
            and entry.value < linf[(*entry.key[:3], "autoattack")]
        )
        assert below == ("lower-than-linf" in entry.flags), entry
    majority = {"tissuemnist": 32.07, "bloodmnist": 19.47, "pathmnist": 18.64, "dermamnist": 66.88, "octmnist": 25.00}
    for number in (1, 12, 18, 22):
        for entry in published(number):
            floor = majority.get(entry.dataset, 0.0)
            near = entry.method in ("Ours", "Original") and entry.value <= floor + 0.15
            assert near == (f"near-or-below-majority:{floor:.2f} %" in entry.flags), entry
    for number in (19, 20):
        values = figures(number)
        for entry in published(number):
            others = [values[(*entry.key[:2], method, "", entry.metric)] for method in AUGMENTATIONS[1:4]]
            below = entry.method == "+ DSS" and entry.metric == "autoattack" and entry.value < max(others)
            assert below == ("below-augmentation" in entry.flags), entry
    images = {"dermamnist": 2005, "octmnist": 1000}  # of the test sets: steps that two decimals tell apart
    for entry in (entry for number in (1, 11, 12, 18) for entry in published(number)):
        n = images.get(entry.dataset, 0)
        nearest = [100 * k / n for k in (int(entry.value * n / 100), int(entry.value * n / 100) + 1)] if n else []
        impossible = bool(n) and all(abs(share - entry.value) >= 0.01 - 1e-9 for share in nearest)
        assert impossible == ("no-multiple" in entry.flags), entry
    for entry in (entry for number in (1, 12, 18) for entry in published(number)):
        assert ("not-data-free" in entry.flags) == (entry.method in ("Original", "Public"))


def test_flags_of_the_attack_tables() -> None:
    """What is odd in Tables 9, 21 and 22 is flagged, and nothing else."""
    values = figures(9)
    for entry in published(9):
        own = {metric: values[(*entry.key[:4], metric)] for metric in CASTS}
        above = entry.metric in ("a3", "automated") and entry.value > own["autoattack"]
        below = entry.metric == "boundary" and entry.value < own["genattack"]
        assert above == ("above-autoattack" in entry.flags), entry
        assert below == ("boundary-below-genattack" in entry.flags), entry
    repeated = [entry.key[:2] for entry in published(9) if "repeated" in entry.flags]
    assert repeated == [("svhn", "resnet20"), ("svhn", "wrn28_10")]
    assert len({values[(*key, "Ours", "", "boundary")] for key in repeated}) == 1
    for number in (21, 22):
        values = figures(number)
        for entry in published(number):
            own = {metric: values[(*entry.key[:4], metric)] for metric in MODIFIED}
            weak = entry.metric == "latent" and entry.value > own["pgd10"]
            assert weak == ("weaker-than-pgd" in entry.flags), entry
            assert (weak and entry.value == own["clean"]) == ("equals-clean" in entry.flags), entry
    older = figures(1)
    for entry in published(22):
        differs = older.get(entry.key[:5], entry.value) != entry.value
        assert differs == ("differs-from-table1" in entry.flags), entry
