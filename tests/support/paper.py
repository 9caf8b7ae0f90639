"""The vocabulary of the paper's tables, and their figures on file by key."""

from dfshield.report.published import published

MEDICAL = ("resnet18", "resnet50")
GENERAL = ("resnet20", "resnet56", "wrn28_10")
ACCURACIES = ("clean", "pgd10", "autoattack")
DIVERSITY = ("recall", "coverage", "ndb", "jsd")
BASELINES = ("DaST", "DFME", "AIT", "DFARD", "Ours")
LOSSES = ("STD", "TRADES", "MART", "ARD", "RSLAD", "L_DFShield")
AUGMENTATIONS = ("Base", "+ Mixup", "+ Cutout", "+ CutMix", "+ DSS")
CASTS = ("clean", "genattack", "boundary", "spsa", "autoattack", "a3", "automated")
STEPS = ("clean", "pgd1", "pgd2", "pgd5", "pgd10", "pgd20", "pgd-unbounded")
MODIFIED = ("clean", "pgd10", "autoattack", "latent", "modified-a", "modified-b", "modified-c")
ORGANS = ("organamnist", "organcmnist", "organsmnist")
MEDICAL_DATASETS = ("tissuemnist", "bloodmnist", "dermamnist", "pathmnist", "octmnist", *ORGANS)
EPSILONS = tuple(f"linf:{eps}/255" for eps in (2, 4, 6, 8))

NUMBERS = (1, *range(4, 13), *range(14, 27))
"""Tables whose figures are on file."""


def figures(number: int, threat: str = "") -> dict[tuple[str, str, str, str, str], float]:
    return {entry.key[:5]: entry.value for entry in published(number) if entry.threat == threat}


def part(number: int, datasets: tuple[str, ...], methods: dict[str, str]) -> dict[tuple[str, ...], float]:
    """Figures of some data sets and methods by (dataset, model, method, metric); methods get the names given."""
    return {
        (dataset, model, methods[method], metric): value
        for (dataset, model, method, _, metric), value in figures(number).items()
        if dataset in datasets and method in methods
    }


def same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}


OTHER_PAPERS = {"transformation-table1": 16, "transformation-table2": 12, "transformation-table3": 12}
OTHER_PAPERS |= {"transformation-table5": 20, "transformation-table6": 9}
"""Tables of other publications than the paper's, and their figures on file."""
