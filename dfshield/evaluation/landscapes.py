"""The record of a loss landscape: a small JSON file, sealed by its hash."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from dfshield.core import sealed
from dfshield.core.errors import InputError

KIND = sealed.Kind("dfshield-landscape", 1, "record of a loss landscape", "dfshield landscape")


@dataclass(frozen=True)
class LandscapeRecord:
    """The loss of one model at and around its weights, in nats: means over N images."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    model: str
    n: Annotated[int, Field(ge=1)]
    """Images."""
    accuracy: FiniteFloat
    """Share of the images, as they are, that the model itself classifies rightly."""
    predicted: Annotated[int, Field(ge=1)]
    """Classes that it answers for them: a model that always answers one is flat, and of no use."""
    coordinates: tuple[FiniteFloat, ...]
    """Places of the surface's points along either direction, in norms of the filters; rising, 0 in the middle."""
    surface: tuple[tuple[FiniteFloat, ...], ...]
    """Loss by place along the first direction (outer) and the second (inner)."""
    centre: FiniteFloat
    """Loss of the model itself."""
    rises: tuple[FiniteFloat, ...]
    """By pair of directions: mean loss on the circle less the loss at its centre."""
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
    content_sha256: str = field(default="")
    """Of all of the above; set when written and read."""

    @property
    def sharpness(self) -> float:
        """Mean rise of the loss over the pairs of directions, in nats: the smaller, the flatter."""
        return statistics.fmean(self.rises)

    @property
    def protocol(self) -> str:
        """What exactly was measured, as tables have it."""
        own = self.options
        loss = f"PGD-{own['steps']}" if own["loss"] == "adversarial" else "clean"
        split = "" if own["split"] == "test" else f" {own['split']}"
        return f"sharpness[{loss} r={own['radius']:g} {own['pairs']}x{own['angles']}{split}]"


_RECORD = TypeAdapter(LandscapeRecord)


def write_landscape(path: Path, record: LandscapeRecord) -> str:
    """Write `record` atomically; returns its content SHA-256."""
    return sealed.write(path, KIND, sealed.body(record))


def read_landscape(path: Path) -> LandscapeRecord:
    """Read and check a record; raises InputError for a file that is missing, foreign, newer, damaged or edited."""
    record = sealed.read_as(path, KIND, _RECORD)
    sizes = {len(record.coordinates), len(record.surface), *map(len, record.surface)}
    if len(sizes) > 1 or not record.rises:
        raise InputError(f"{path}: its surface is no square, or it has no circle; {KIND.remedy}")
    return record
