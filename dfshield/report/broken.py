"""What broke the images of an evaluation: counts by component of the attack, from the ledger."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfshield.core.files import csv_text
from dfshield.evaluation.ledger import read_ledger
from dfshield.planning.cells import Cell
from dfshield.registry import metric
from dfshield.report.rows import Row

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


@dataclass(frozen=True)
class Share:
    """Images of one model whose verdict is of one component: those that it was the first to break."""

    dataset: str
    model: str
    method: str
    component: str
    """`ROBUST` for images that nothing broke, `CLEAN` for those wrong without attack"""
    share: float
    """percent of the images, the mean over seeds"""
    seeds: int
    n: int
    """images, the fewest of a seed"""
    flags: tuple[str, ...]
    """of the accuracy under the attack"""


SHARE_COLUMNS = ("dataset", "model", "method", "component", "share", "seeds", "n", "flags")


def shares(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Share]:
    """Shares of every data set, model and method: of survivors, then of components in the order in which they ran.

    `rows` are those of `cells`, which are all of one protocol. The shares of a method sum to 100. Raises InputError for
    a damaged ledger.
    """
    found: dict[tuple[str, str, str], list[tuple[Tally, Row]]] = {}
    for cell, row in zip(cells, rows, strict=True):
        (tally,) = tallies([cell])
        found.setdefault((cell.dataset, cell.model, cell.method), []).append((tally, row))
    return [share for key, seeds in found.items() for share in _shares(key, seeds)]


def _shares(key: tuple[str, str, str], seeds: Sequence[tuple[Tally, Row]]) -> list[Share]:
    counts = [{ROBUST: tally.survivors[-1]} | dict(tally.components) for tally, _ in seeds]
    flags = tuple(dict.fromkeys(flag for _, row in seeds for flag in row.flags))
    n = [tally.n for tally, _ in seeds]
    return [
        Share(
            *key,
            component=name,
            share=statistics.fmean(100 * own.get(name, 0) / of for own, of in zip(counts, n, strict=True)),
            seeds=len(seeds),
            n=min(n),
            flags=flags,
        )
        for name in dict.fromkeys(name for own in counts for name in own)
    ]


def csv_of(made: Sequence[Share]) -> str:
    """Shares as a tidy CSV."""
    rows = (
        (one.dataset, one.model, one.method, one.component, f"{one.share:.2f}", one.seeds, one.n, ";".join(one.flags))
        for one in made
    )
    return csv_text(SHARE_COLUMNS, rows)
