"""The record of a smoothed classifier's certificates: a small JSON file, sealed by its hash."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.core.threat import Threat

KIND = sealed.Kind("dfshield-certificates", 2, "record of certificates", "dfshield certify")
ABSTAINED = -1
"""The class of an image about which nothing is certified."""


@dataclass(frozen=True)
class CertificateRecord:
    """Classes and radii of N images."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    model: str
    norm: Literal["l1", "l2"]
    """Of the radii."""
    classes: Annotated[int, Field(ge=2)]
    n: Annotated[int, Field(ge=1)]
    """Images."""
    abstained: FiniteFloat
    """Share of images about which nothing is certified."""
    curve: tuple[dict[str, FiniteFloat], ...]
    """Certified accuracy, a share, by radius."""
    labels: tuple[int, ...]
    predictions: tuple[int, ...]
    """Class of the smoothed classifier; `ABSTAINED` where nothing is certified."""
    radii: tuple[FiniteFloat, ...]
    """Radius within which that class cannot change, in units where pixels lie in [0,1]."""
    options: dict[str, Any]
    seed: int
    model_sha256: str
    """Of the checkpoint's tensors."""
    data_sha256: str
    """Of the images and labels."""
    real_data: str
    """What real data the model has seen."""
    package_version: str
    code: str
    defence: str = "none"
    """What stood before the classifier."""
    defence_options: dict[str, Any] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """The fit of the defence: SHA-256 of its tensors."""
    distance: FiniteFloat = 0.0
    """What the radii are less by, in their norm: how far a purifier may lead an image."""
    content_sha256: str = field(default="")
    """Of all of the above; set when written and read."""

    def certified(self, threat: Threat) -> np.ndarray:
        """Whether each image is of the right class and stays so within `threat`: (N,) bool.

        Raises InputError for a threat in another norm than that of the radii.
        """
        if threat.norm != self.norm:
            raise InputError(f"its radii are in {self.norm}, not in {threat.norm}")
        return (np.array(self.predictions) == np.array(self.labels)) & (np.array(self.radii) > threat.eps)

    @property
    def protocol(self) -> str:
        """What exactly ran, as tables have it."""
        own = self.options
        draws = f"n={own['n0']}+{own['n']} alpha={own['alpha']:g}"
        split = "" if own["split"] == "test" else f" {own['split']}"
        return f"certified[{own['distribution']} sigma={own['sigma']:g} {draws}{split}]"


_RECORD = TypeAdapter(CertificateRecord)


def write_certificates(path: Path, record: CertificateRecord) -> str:
    """Write `record` atomically; returns its content SHA-256."""
    return sealed.write(path, KIND, sealed.body(record))


def read_certificates(path: Path) -> CertificateRecord:
    """Read and check a record; raises InputError for a file that is missing, foreign, newer, damaged or edited."""
    record = sealed.read_as(path, KIND, _RECORD)
    if {len(record.labels), len(record.predictions), len(record.radii)} != {record.n}:
        raise InputError(f"{path}: has other numbers of labels, predictions and radii than {record.n}; {KIND.remedy}")
    return record
