"""The record of a synthetic set's diversity: a small JSON file that table cells are read from and traced by hash."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.registry import DIVERSITY_METRICS, RealData

KIND = sealed.Kind("dfshield-diversity", 1, "record of diversity metrics", "dfshield diversity")

BINNED = ("ndb", "jsd")
"""Metrics of the bins; the others are of neighbourhoods."""


@dataclass(frozen=True)
class Record:
    """Diversity of one synthetic set with respect to one set of real images."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    model: str
    source: str
    seed: int
    """Of the synthetic set."""
    split: str
    """Part of the real data set."""
    n_real: Annotated[int, Field(ge=1)]
    """Real images that were compared."""
    n_synthetic: Annotated[int, Field(ge=1)]
    """Synthetic images that were compared."""
    values: dict[str, FiniteFloat]
    """Value by metric: all of `registry.DIVERSITY_METRICS`."""
    options: dict[str, Any]
    """Options of the stage."""
    real_data: RealData
    """Real data that the synthetic set was made from."""
    teacher_sha256: str
    """Of the tensors of the teacher that the set was made from."""
    data_sha256: str
    """Content of the synthetic set."""
    real_sha256: str
    """Of the whole real split."""
    weights_sha256: str
    """Of the file of VGG16 weights; empty without one."""
    package_version: str
    code: str
    content_sha256: str = field(default="")
    """Of all of the above; set when written and read."""


_RECORD = TypeAdapter(Record)


def write_record(path: Path, record: Record) -> str:
    """Write `record` atomically; returns its content SHA-256."""
    return sealed.write(path, KIND, sealed.body(record))


def read_record(path: Path) -> Record:
    """Read and check a record; raises InputError for a file that is missing, foreign, newer, damaged or edited."""
    record = sealed.read_as(path, KIND, _RECORD)
    if record.values.keys() != set(DIVERSITY_METRICS):
        raise InputError(
            f"{path}: has {', '.join(record.values)}, expected {', '.join(DIVERSITY_METRICS)}; {KIND.remedy}"
        )
    return record


def protocol(record: Record, metric: str) -> str:
    """What exactly ran for `metric`, as tables have it: ``ndb[pixels K=100 alpha=0.05 train]``."""
    options = record.options
    if metric in BINNED:
        level = f" alpha={options['alpha']:g}" if metric == "ndb" else ""
        return f"{metric}[{options['bin_features']} K={options['bins']}{level} {record.split}]"
    return f"{metric}[{options['features']} k={options['neighbours']} {record.split}]"
