"""The cells of a table: one figure each."""

from dataclasses import dataclass
from typing import Any

from dfshield.planning.tables import SYMBOLS
from dfshield.registry import metrics


@dataclass(frozen=True)
class Cell:
    """One figure of a table: a model's accuracy, or its training data's diversity, by one metric at one seed."""

    table: str
    """the table's key in tables.yaml, such as ``table4``"""
    dataset: str
    model: str
    method: str
    variant: str
    """swept values as `variant` writes them; empty without a sweep"""
    defence: str
    """test-time defence; ``none`` without one"""
    threat: str
    """threat model of the evaluation, and of the training where there is one, such as ``linf:4/255``"""
    metric: str
    """``clean``, ``autoattack``, the name of another protocol such as ``pgd10``, a distance under one such as
    ``median-cw``, ``certified``, a metric of a detector or of diversity"""
    seed: int
    ledger: str
    """path of what the figure is read from: the evaluation ledger, or a record"""
    checks: str = ""
    """path of the robustness checks of the attacked classifier, whose failures mark the figure; empty without any"""
    attacks: tuple[str, ...] = ()
    """ledgers of the table's attacks on the same classifier within the same radius, of a certified accuracy"""

    @property
    def evidence(self) -> metrics.Evidence:
        """Kind of what the figure is read from."""
        return metrics.metric(self.metric).evidence


def variant(overrides: dict[str, Any]) -> str:
    """Swept options as a table's `variant`: ``{"lambda1": 0.1, "lambda2": 10}`` gives ``lambda1=0.1,lambda2=10``."""
    return ",".join(f"{SYMBOLS.get(name, name)}={_number(value)}" for name, value in overrides.items())


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def swept(text: str) -> dict[str, float]:
    """The inverse of `variant` for numbers: ``lambda1=0.1,lambda2=10`` gives ``{"lambda1": 0.1, "lambda2": 10.0}``."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {name: float(value) for name, _, value in pairs}
