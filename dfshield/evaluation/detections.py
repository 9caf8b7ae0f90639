"""The record of a detector's evaluation: a small JSON file, sealed by its hash."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from dfshield.core import sealed

KIND = sealed.Kind("dfshield-detection", 2, "record of a detector's evaluation", "dfshield detect")


@dataclass(frozen=True)
class Outcome:
    """What a detector makes of one attack on images that the network classifies rightly."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    fooled: FiniteFloat
    """Share of them that the network misclassifies."""
    detected: FiniteFloat | None
    """Share of the fooled ones that are flagged; None without any."""
    auroc: FiniteFloat | None
    """Area under the curve of detection by false alarms, of the fooled ones against the clean images; likewise."""
    evaded: FiniteFloat
    """Share of all that the network misclassifies and the detector does not flag: the attack's success."""


@dataclass(frozen=True)
class DetectionRecord:
    """One detector before attacks that do not know of it and attacks that do."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    model: str
    n: Annotated[int, Field(ge=1)]
    """Images of the evaluation."""
    right: Annotated[int, Field(ge=1)]
    """Those that the network classifies rightly, which are attacked."""
    false_alarms: FiniteFloat
    """Share of the images that are flagged as they are."""
    false_alarms_wanted: FiniteFloat
    """The same of the held-out training images that the threshold was set on."""
    threshold: FiniteFloat
    """Images with a larger score are flagged."""
    static: Outcome
    adaptive: Outcome
    options: dict[str, Any]
    seed: int
    model_sha256: str
    """Of the checkpoint's tensors."""
    data_sha256: str
    """Of the images and labels."""
    training_sha256: str
    """Of the training set that the detector was fitted on."""
    real_data: str
    """What real data network and detector have seen."""
    package_version: str
    code: str
    content_sha256: str = field(default="")
    """Of all of the above; set when written and read."""

    @property
    def protocol(self) -> str:
        """What exactly ran, as tables have it."""
        own = self.options
        split = "" if own["split"] == "test" else f" {own['split']}"
        return f"{own['detector']}[steps={own['steps']} restarts={own['restarts']}{split}]"


_RECORD = TypeAdapter(DetectionRecord)


def write_detection(path: Path, record: DetectionRecord) -> str:
    """Write `record` atomically; returns its content SHA-256."""
    return sealed.write(path, KIND, sealed.body(record))


def read_detection(path: Path) -> DetectionRecord:
    """Read and check a record; raises InputError for a file that is missing, foreign, newer, damaged or edited."""
    return sealed.read_as(path, KIND, _RECORD)
