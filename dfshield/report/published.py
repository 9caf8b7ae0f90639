"""The paper's published numbers (``report/paper/tableN.csv``), as printed, with the anomalies we know of as flags."""

import csv
import functools
from dataclasses import dataclass
from importlib import resources

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
    def key(self) -> tuple[str, str, str, str, str]:
        """(dataset, model, method, variant, metric); unique within a threat."""
        return self.dataset, self.model, self.method, self.variant, self.metric


@functools.cache
def published(number: int) -> tuple[Published, ...]:
    """All figures of the paper's table `number`, in the paper's order; empty for a table that is not on file."""
    file = resources.files("dfshield.report") / "paper" / f"table{number}.csv"
    if not file.is_file():
        return ()
    return tuple(
        Published(
            **{name: row[name] for name in COLUMNS[:5]},
            value=float(row["value"]),
            flags=tuple(flag for flag in row["flags"].split(";") if flag),
            threat=row.get("threat", ""),
        )
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    )
