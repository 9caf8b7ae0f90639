"""Options of the robustness checks."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.core.threat import ThreatText
from dfshield.options.common import Positive, StageOptions

FACTORS = (0.5, 1.0, 2.0, 4.0)
"""Points of the ε curve, in units of ε, before the unbounded one."""
DIRECTIONS = 16
"""Random directions along which slopes by gradients and by differences are compared."""


class ChecksOptions(StageOptions):
    """Check whether the evaluation of a model can be believed."""

    threat: ThreatText = "linf:8/255"
    """threat model, NORM:EPS"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 100
    """check on the first so many images; 0 for all"""
    chunk: Positive = 250
    """images attacked together"""
    steps: Positive = 20
    """steps of the checks' PGD, each of ε/4"""
    restarts: Positive = 4
    """random starts of the checks' PGD"""
    queries: Positive = 500
    """queries of Square"""
    draws: Positive = 10
    """draws of random noise"""
    gradients: Positive = 16
    """images whose gradients are compared with finite differences"""
    binarised: Annotated[int, Field(ge=0)] = 16
    """images of the binarisation test; 0 leaves it out"""
    inner: Annotated[int, Field(ge=10)] = 999
    """points around each image of the binarisation test that belong to its own class"""
