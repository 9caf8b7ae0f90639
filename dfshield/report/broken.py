"""What broke the images of an evaluation: counts by component of the attack, from the ledger."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfshield.evaluation.ledger import read_ledger
from dfshield.planning.cells import Cell
from dfshield.registry import metric

ROBUST, CLEAN = "robust", "clean"
"""Names that ledgers have for images that nothing broke, and for those that are wrong without attack."""


@dataclass(frozen=True)
class Tally:
    """The images of one model and protocol by what broke them."""

    method: str
    metric: str
    threat: str
    n: int
    """images"""
    components: tuple[tuple[str, int], ...]
    """name and number of images, in the order in which they ran: those wrong without attack first"""
    data_sha256: str
    """of the evaluation images and labels"""

    @property
    def survivors(self) -> list[int]:
        """Images that are left after each component."""
        left, found = self.n, []
        for _, broke in self.components:
            left -= broke
            found.append(left)
        return found


def tallies(cells: Iterable[Cell]) -> list[Tally]:
    """One tally for each ledger that the cells name, in their order. Raises InputError for a damaged ledger."""
    found: dict[str, Tally] = {}
    for cell in cells:
        if cell.metric == "clean" or metric(cell.metric).evidence != "ledger" or cell.ledger in found:
            continue
        ledger = read_ledger(Path(cell.ledger))
        counts = np.bincount(ledger.component, minlength=len(ledger.components)).tolist()
        broke = tuple((n, c) for n, c in zip(ledger.components, counts, strict=True) if n != ROBUST)
        found[cell.ledger] = Tally(cell.method, cell.metric, cell.threat, ledger.n, broke, ledger.data_sha256)
    return list(found.values())


def component_title(name: str) -> str:
    """What pictures call a component."""
    return "wrong without attack" if name == CLEAN else name
