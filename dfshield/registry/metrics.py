"""What tables measure."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A column of tables: its title, unit, decimals, and the kind of file that it is read from."""

    title: str
    unit: str = "%"
    decimals: int = 2
    evidence: Literal["ledger", "diversity"] = "ledger"


METRICS = {
    "clean": Metric("Clean"),
    "fgsm": Metric("FGSM"),
    "pgd10": Metric("PGD-10"),
    "pgd50x5": Metric("PGD-50×5"),
    "autoattack": Metric("AA"),
    "precision": Metric("Precision", "1", 3, "diversity"),
    "recall": Metric("Recall", "1", 3, "diversity"),
    "density": Metric("Density", "1", 3, "diversity"),
    "coverage": Metric("Coverage", "1", 3, "diversity"),
    "ndb": Metric("NDB", "bins", 0, "diversity"),
    "jsd": Metric("JSD", "nat", 3, "diversity"),
}


def metric(name: str) -> Metric:
    """The metric `name`; a protocol without an entry is an accuracy by its own name."""
    return METRICS.get(name, Metric(name))
