"""The evidence that figures are read from: where it lies, how it is read, and which row it gives."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py

from dfshield.evaluation.certificates import read_certificates
from dfshield.evaluation.detections import read_detection
from dfshield.evaluation.landscapes import read_landscape
from dfshield.evaluation.ledger import read_ledger
from dfshield.evaluation.record import read_record
from dfshield.planning.cells import Cell
from dfshield.planning.paths import CERTIFICATES, DETECTION, DIVERSITY, IMAGES_DIVERSITY, LANDSCAPE, LEDGER, Place
from dfshield.report.record_rows import certified_row, detection_row, diversity_row, landscape_row
from dfshield.report.rows import Row, ledger_row


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence."""

    noun: str
    """what messages call it"""
    templates: tuple[str, ...]
    """its paths in the path grammar"""
    read: Callable[[Path], Any]
    """reads and checks a file; raises InputError"""
    row: Callable[[Cell, Any, float | None], Row]
    """the row of a cell, by what `read` returned and the published value; raises InputError if they do not fit"""
    stated: Callable[[Path], object]
    """content hash that a file states, unchecked; raises one of `DAMAGED`"""
    traces: Literal["model", "data"]
    """what `dfshield verify` follows it to: the model that was attacked, or the training data that were compared"""

    @property
    def pattern(self) -> str:
        """Glob pattern of its file names, such as ``diversity@*.json``."""
        return re.sub(r"\{\w+\}", "*", Path(self.templates[0]).name)

    def place(self, path: str) -> Place | None:
        """Where evidence at `path` belongs; None if it is no path of its kind."""
        places = (Place.parse(template, path) for template in self.templates)
        return next((place for place in places if place), None)


DAMAGED = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What a file that is not whole raises in `Evidence.stated`."""


def _ledger_states(path: Path) -> object:
    with h5py.File(path, "r", locking=False) as file:
        return file.attrs.get("content_sha256")


def _record_states(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))["content_sha256"]


EVIDENCE: Mapping[str, Evidence] = {
    "ledger": Evidence("ledger", (LEDGER,), read_ledger, ledger_row, _ledger_states, traces="model"),
    "diversity": Evidence(
        "record", (DIVERSITY, IMAGES_DIVERSITY), read_record, diversity_row, _record_states, traces="data"
    ),
    "certificates": Evidence(
        "record", (CERTIFICATES,), read_certificates, certified_row, _record_states, traces="model"
    ),
    "detection": Evidence("record", (DETECTION,), read_detection, detection_row, _record_states, traces="model"),
    "landscape": Evidence("record", (LANDSCAPE,), read_landscape, landscape_row, _record_states, traces="model"),
}
"""Evidence by the kind that `registry.Metric.evidence` names."""
