"""Rows of a table that are read from records: diversity, certificates, a detector's evaluation, loss landscapes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat
from dfshield.evaluation import record as diversity
from dfshield.evaluation.certificates import CertificateRecord
from dfshield.evaluation.detections import DetectionRecord
from dfshield.evaluation.landscapes import LandscapeRecord
from dfshield.evaluation.ledger import confidence_interval, read_ledger
from dfshield.evaluation.record import Record
from dfshield.planning.cells import Cell
from dfshield.report.rows import REAL, Row, metric_of, shared

Subject = CertificateRecord | DetectionRecord | LandscapeRecord
ABOVE = "certified-above-attacked"
"""Flag of a certified accuracy that an attack within the same radius shows to be too high."""


def diversity_row(cell: Cell, record: Record, paper: float | None) -> Row:
    """The row of one cell of a diversity metric, by its record; InputError if the record is of another cell."""
    if (record.dataset, record.model) != (cell.dataset, cell.model):
        raise InputError(
            f"{cell.ledger}: is of {record.dataset}/{record.model}, not of {cell.dataset}/{cell.model}; make it again"
        )
    value, protocol = record.values[cell.metric], diversity.protocol(record, cell.metric)
    return _row(cell, record, paper, value=value, n=record.n_real, protocol=protocol)


def _row(cell: Cell, record: Record | Subject, paper: float | None, **own: Any) -> Row:
    """A row with the figures of its `own`; others have no value."""
    unknown = dict.fromkeys(("ci_low", "ci_high", "majority", "balanced", "macro_f1"), math.nan)
    flags = (*(("not-data-free",) if record.real_data in REAL else ()), *own.pop("flags", ()))
    stated = {"paper": paper, "ledger_sha256": record.content_sha256, "flags": flags}
    return Row(**{**shared(cell), **unknown, **stated, **own})


def certified_row(cell: Cell, record: CertificateRecord, paper: float | None) -> Row:
    """The row of a certified accuracy at a cell's radius; InputError if the record is of another cell or norm.

    It is flagged where an attack of the cell's `attacks` leaves less than that, on the images that both have.
    """
    _check_subject(cell, record)
    try:
        held = record.certified(parse_threat(cell.threat))
    except InputError as error:
        raise InputError(f"{cell.ledger}: {error}; correct the norm of the row {cell.method!r}") from None
    labels = np.array(record.labels)
    low, high = confidence_interval(int(held.sum()), record.n)
    below = [_metric_below(path, record, held) for path in cell.attacks]
    return _row(
        cell,
        record,
        paper,
        value=100 * float(held.mean()),
        ci_low=low,
        ci_high=high,
        n=record.n,
        protocol=record.protocol,
        flags=tuple(f"{ABOVE}:{metric}" for metric in below if metric),
        majority=100 * float(np.bincount(labels).max()) / record.n,
        balanced=100 * float(np.mean([held[labels == label].mean() for label in np.unique(labels)])),
    )


def _metric_below(path: str, record: CertificateRecord, held: np.ndarray) -> str:
    """The protocol of an attack that leaves less than is certified, on the first images of both; empty if it does not.

    Raises InputError for a ledger of another network or of other images.
    """
    ledger = read_ledger(Path(path))
    common = min(ledger.n, record.n)
    if ledger.model_sha256 != record.model_sha256 or not np.array_equal(ledger.label[:common], record.labels[:common]):
        raise InputError(f"{path}: is of another model or of other images than the certificates; make both again")
    return metric_of(ledger.protocol) if held[:common].mean() > (~ledger.broken[:common]).mean() else ""


DETECTION: dict[str, Callable[[DetectionRecord], tuple[float | None, int]]] = {
    "false-alarms-wanted": lambda record: (record.false_alarms_wanted, 0),
    "false-alarms": lambda record: (record.false_alarms, record.n),
    "threshold": lambda record: (record.threshold, 0),
    "detected": lambda record: (record.static.detected, round(record.static.fooled * record.right)),
    "evaded": lambda record: (record.static.evaded, record.right),
    "evaded-adaptive": lambda record: (record.adaptive.evaded, record.right),
}
"""Figures of a detector, and of how many images each is a rate; 0 for what was chosen, not measured."""


def detection_row(cell: Cell, record: DetectionRecord, paper: float | None) -> Row:
    """The row of one figure of a detector; InputError if the record is of another cell."""
    _check_subject(cell, record)
    _check_threat(cell, record)
    figure, n = DETECTION[cell.metric](record)
    value = math.nan if figure is None else figure * (100 if shared(cell)["unit"] == "%" else 1)
    low, high = confidence_interval(round(figure * n), n) if n and figure is not None else (math.nan, math.nan)
    figures = {"value": value, "ci_low": low, "ci_high": high, "n": n or record.n}
    return _row(cell, record, paper, protocol=record.protocol, **figures)


def landscape_row(cell: Cell, record: LandscapeRecord, paper: float | None) -> Row:
    """The row of a model's sharpness; InputError if the record is of another cell.

    It is flagged as ``diverged`` where the model answers one class for all images, which nothing is flatter than.
    """
    _check_subject(cell, record)
    _check_threat(cell, record)
    flags = ("diverged",) if record.predicted == 1 else ()
    return _row(cell, record, paper, value=record.sharpness, n=record.n, protocol=record.protocol, flags=flags)


def _check_threat(cell: Cell, record: DetectionRecord | LandscapeRecord) -> None:
    if parse_threat(cell.threat) != parse_threat(record.options["threat"]):
        raise InputError(f"{cell.ledger}: its threat is {record.options['threat']}, not {cell.threat}; make it again")


def _check_subject(cell: Cell, record: Subject) -> None:
    if (record.dataset, record.model, record.seed) != (cell.dataset, cell.model, cell.seed):
        raise InputError(
            f"{cell.ledger}: is of {record.dataset}/{record.model} seed {record.seed}, not of "
            f"{cell.dataset}/{cell.model} seed {cell.seed}; make it again"
        )
