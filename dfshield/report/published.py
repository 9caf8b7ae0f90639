"""Published numbers (``report/paper/TABLE.csv``), as printed; flags name the anomalies that we know of.

``tableN`` is a table of the paper; other names are tables of other publications.
"""

import csv
import functools
from dataclasses import dataclass
from importlib import resources

from dfshield.core.threat import parse_threat

Key = tuple[str, str, str, str, str, str]
COLUMNS = ("dataset", "model", "method", "variant", "metric", "value", "flags")


@dataclass(frozen=True)
class Published:
    """One published figure: accuracies in percent, diversity metrics as printed (NDB of 100 bins, the rest up to 1)."""

    dataset: str
    model: str
    method: str
    variant: str
    metric: str
    value: float
    flags: tuple[str, ...]
    threat: str = ""
    """in tables over several threats such as ``linf:4/255``; empty where the table has one"""

    @property
    def key(self) -> Key:
        """(dataset, model, method, variant, metric, threat)."""
        return self.dataset, self.model, self.method, self.variant, self.metric, self.threat


@functools.cache
def published(table: int | str) -> tuple[Published, ...]:
    """All figures of a table, by the paper's number or its name, in print order; empty for one that is not on file."""
    return tuple(
        Published(
            **{name: row[name] for name in COLUMNS[:5]},
            value=float(row["value"]),
            flags=tuple(flag for flag in row["flags"].split(";") if flag),
            threat=row.get("threat", ""),
        )
        for row in _rows(f"table{table}.csv" if isinstance(table, int) else f"{table}.csv")
    )


@functools.cache
def printed_notes() -> dict[str, tuple[str, str]]:
    """Mark and footnote by flag of the published figures; the mark is empty where it is any letter."""
    return {row["flag"]: (row["mark"], row["text"]) for row in _rows("notes.csv")}


def _rows(name: str) -> list[dict[str, str]]:
    """Rows of a file of ``report/paper``; none if there is no such file."""
    file = resources.files("dfshield.report") / "paper" / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []


def figure(table: int | str, key: Key) -> float | None:
    """The published figure of a table, as in `published`, for a table row's key, where it has one.

    Threats are compared by size; a table over one threat has its figures whatever the key's.
    """
    figures, threat = _by_threat(table), _same(*parse_threat(key[-1]))
    return figures.get((*key[:-1], threat), figures.get((*key[:-1], "")))


def _same(norm: str, eps: float) -> str:
    """One text for equal sizes, be they written ``4/255`` or as a decimal."""
    return f"{norm}:{eps:.6g}"


@functools.cache
def _by_threat(table: int | str) -> dict[Key, float]:
    return {
        (*entry.key[:-1], _same(*parse_threat(entry.threat)) if entry.threat else ""): entry.value
        for entry in published(table)
    }
