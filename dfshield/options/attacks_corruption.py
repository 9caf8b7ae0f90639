"""Options of common corruptions, which replace images in place of attacking them."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.core.threat import ThreatText
from dfshield.options.attacks import AttackOptions
from dfshield.options.common import AttackName
from dfshield.registry.attacks import EVERYWHERE

CorruptionName = Literal[
    "gaussian-noise",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic-transform",
    "pixelate",
    "jpeg-compression",
    "all",
]


class Corruption(AttackOptions):
    """Common corruptions (Hendrycks and Dietterich 2019)."""

    attack: AttackName = "corruption"
    """attack"""
    threat: ThreatText = EVERYWHERE
    """threat model, NORM:EPS; a corruption is bounded by none, so it is the one that holds every image"""
    kind: CorruptionName = "all"
    """kind of corruption; all: one of the fifteen, drawn for each image"""
    severity: Annotated[int, Field(ge=0, le=5)] = 0
    """severity from 1 to 5; 0: one of the five, drawn for each image"""
