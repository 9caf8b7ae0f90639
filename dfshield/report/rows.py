"""Rows of a table: one a cell and seed, made from the evidence of the cell, and their CSV."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import csv_text, existing_file, write_text
from dfshield.core.threat import parse_threat
from dfshield.evaluation.distances import STATISTICS
from dfshield.evaluation.doubts import ALIKE, doubts
from dfshield.evaluation.findings import Findings
from dfshield.evaluation.ledger import Ledger, confidence_interval
from dfshield.planning.cells import Cell, swept
from dfshield.planning.tables import TableSpec, formulas
from dfshield.registry import metric, protocol_of
from dfshield.report.published import Key

MASKED = ("zero-gradients", "square-broke-after-white-box")
"""Flags of a ledger that are signs of masked gradients (Croce and Hein 2020)."""
REAL = ("train", "test", "public")
"""Values of `real_data` that cost a model its claim to be data-free."""
SHARES = ("majority", "balanced", "macro_f1")
OPTIONAL = ("ci_low", "ci_high", *SHARES)
"""Columns that a diversity metric leaves empty."""
MEASURED = ("value", "ci_low", "ci_high", "paper")
"""Columns in the metric's unit, with its decimals."""


@dataclass(frozen=True)
class Row:
    """One row of a table CSV; accuracies and shares in percent.

    A diversity metric has no interval and no shares by class (NaN, empty in the CSV); its n counts the real images. A
    distance has no shares by class, and the largest has no interval; both may be infinite. A rate of a detector has no
    shares by class, and a rate of no image no value.
    """

    dataset: str
    model: str
    method: str
    variant: str
    defence: str
    threat: str
    metric: str
    value: float
    unit: str
    ci_low: float
    ci_high: float
    n: int
    seed: int
    protocol: str
    flags: tuple[str, ...]
    majority: float
    balanced: float
    macro_f1: float
    paper: float | None
    ledger_sha256: str

    @property
    def key(self) -> Key:
        """(dataset, model, method, variant, metric, threat): what seeds have in common."""
        return key_of(self)

    def text(self, name: str) -> str:
        """The value of a column as the CSV has it."""
        return cell_text(getattr(self, name), metric(self.metric).decimals if name in MEASURED else 2)


def key_of(place: Row | Cell) -> Key:
    """What the seeds of a row or cell have in common; the paper's figures have the same key."""
    return place.dataset, place.model, place.method, place.variant, place.metric, place.threat


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
SHARED = tuple(field.name for field in dataclasses.fields(Cell) if field.name in COLUMNS)
"""Columns that a row takes from its cell."""


def cell_of(row: Row, path: Path) -> Cell:
    """The cell of a row, whose figure is read from `path`."""
    return Cell(table="", ledger=str(path), **{name: getattr(row, name) for name in SHARED})


def shared(cell: Cell) -> dict[str, Any]:
    """What a row has from its cell."""
    return {name: getattr(cell, name) for name in SHARED} | {"unit": metric(cell.metric).unit}


def ledger_row(cell: Cell, ledger: Ledger, paper: float | None) -> Row:
    """The row of one cell, by its ledger; `paper` is the published value, if any. InputError if they do not fit."""
    _check(cell, ledger)
    if cell.metric == "clean":  # all shares are then of the unperturbed images, whatever attack the ledger is of
        clean = ledger.clean_prediction
        flags = tuple(f for f in ledger.flags if f == ALIKE or metric_of(ledger.protocol) == "clean")
        shares = {"prediction": clean, "broken": clean != ledger.label, "components": ledger.components[:2]}
        ledger = dataclasses.replace(ledger, **shares, flags=flags)
    return Row(
        **shared(cell),
        **(_distance(cell, ledger) if metric(cell.metric).statistic else _accuracy(ledger)),
        n=ledger.n,
        protocol=ledger.protocol,
        flags=flags_of(ledger),
        paper=paper,
        ledger_sha256=ledger.content_sha256,
    )


def _accuracy(ledger: Ledger) -> dict[str, Any]:
    low, high = confidence_interval(int(np.count_nonzero(~ledger.broken)), ledger.n)
    return {
        "value": ledger.robust_accuracy,
        "ci_low": low,
        "ci_high": high,
        "majority": ledger.majority,
        "balanced": ledger.balanced_accuracy,
        "macro_f1": ledger.macro_f1,
    }


def _distance(cell: Cell, ledger: Ledger) -> dict[str, Any]:
    if not len(ledger.distances):
        raise InputError(f"{cell.ledger}: has no distances, which {cell.metric} is of; attack again")
    figure, interval = STATISTICS[metric(cell.metric).statistic]
    low, high = interval(ledger.distances)
    return {"value": figure(ledger.distances), "ci_low": low, "ci_high": high} | dict.fromkeys(SHARES, math.nan)


def marked(row: Row, findings: Findings) -> Row:
    """The row with a flag ``failed-check:NAME`` for every robustness check of its model that failed."""
    return dataclasses.replace(row, flags=(*row.flags, *findings.flags))


def _check(cell: Cell, ledger: Ledger) -> None:
    measured = metric_of(ledger.protocol)
    if protocol_of(cell.metric) not in ("clean", measured):
        raise InputError(f"{cell.ledger}: its protocol is {ledger.protocol}, not {cell.metric}; attack again")
    if cell.metric != "clean" and parse_threat(cell.threat) != parse_threat(ledger.threat):
        raise InputError(f"{cell.ledger}: its threat is {ledger.threat}, not {cell.threat}; attack again")


def metric_of(protocol: str) -> str:
    """The metric that a protocol gives: ``autoattack[aa-standard]`` gives ``autoattack``."""
    return protocol.partition("[")[0]


def flags_of(ledger: Ledger) -> tuple[str, ...]:
    """The ledger's flags and those that follow from its contents.

    ``diverged`` (the paper's †): the training ended so, or every clean image is predicted as one class.
    ``not-data-free``: trained on real images. ``reduced-classes``: AutoAttack with fewer targets than its standard, for
    want of classes. ``masked-gradients:…``: a sign that gradients mislead the attack. Those of `doubts`: a verdict that
    cannot be right.
    """
    flags = [f"masked-gradients:{flag}" if flag in MASKED else flag for flag in ledger.flags]
    if np.count_nonzero(ledger.labels) > 1 and len(np.unique(ledger.clean_prediction)) == 1:
        flags.append("diverged")
    flags += doubts(ledger)
    if ledger.real_data in REAL:
        flags.append("not-data-free")
    if "C=" in ledger.protocol.partition("[")[2]:
        flags.append("reduced-classes")
    return tuple(dict.fromkeys(flags))


def csv_of(rows: Sequence[Row]) -> str:
    """Rows as a tidy CSV with the columns of `Row`."""
    return csv_text(COLUMNS, ([row.text(name) for name in COLUMNS] for row in rows))


def csv_of_formulas(spec: TableSpec) -> str:
    """A table of formulas as a CSV: method, what its generator and what its student minimises."""
    return csv_text(("method", "generator", "student"), formulas(spec))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a tidy CSV, atomically."""
    write_text(path, csv_of(rows))


def cell_text(value: object, places: int = 2) -> str:
    """A value as the CSV has it: fixed decimals, flags joined by semicolons, nothing for None and NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, tuple):
        return ";".join(value)
    return f"{value:.{places}f}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[Row]:
    """Read a table CSV; raises InputError for anything that `write_csv` did not write."""
    existing_file(path, "table CSV", f"make it with `snakemake {path}` or `dfshield table`")
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(f"{path}: no table of measured cells; the columns of one are {','.join(COLUMNS)}")
            return [_parse(row) for row in reader]
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a table CSV ({error}); make the table again") from None


def _parse(row: dict[str, str]) -> Row:
    parse_threat(row["threat"])
    swept(row["variant"])
    parsers = {"n": int, "seed": int, "flags": lambda text: tuple(f for f in text.split(";") if f)}
    parsers |= dict.fromkeys(("value", *OPTIONAL), lambda text: float(text) if text else math.nan)
    parsers["paper"] = lambda text: float(text) if text else None
    return Row(**{name: parsers.get(name, str)(row[name]) for name in COLUMNS})  # type: ignore[operator]
