"""Options of defences that detect attacked images, and of the evaluation of detectors."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.core.threat import ThreatText
from dfshield.options.common import DefenceName, Positive, StageOptions
from dfshield.options.defences import DefendOptions

RADII = (2, 4, 6, 8, 10, 12, 14, 16)
"""Radii of the low-pass filters, in pixels of a spectrum of 32 x 32."""


class Dad(DefendOptions):
    """DAD (Nayak et al. 2022): images that a detector flags are low-pass filtered."""

    defence: DefenceName = "dad"
    """defence"""
    steps: Positive = 10
    """steps of the PGD attack whose images the detector learns to tell"""
    epochs: Positive = 40
    """passes of the detector's training over the clean and attacked images"""
    batch: Positive = 64
    """images of a mini-batch; a convention"""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """learning rate of RMSprop"""

    @property
    def passes(self) -> int:
        """The image itself and its versions at all radii."""
        return 1 + len(RADII)


class DetectOptions(StageOptions):
    """Fit a detector of attacked images on a training set, and evaluate it before attacks that know of it."""

    detector: Literal["classifier", "mahalanobis"] = "classifier"
    """classifier: a network on the logits; mahalanobis: distance of the penultimate features from the nearest class"""
    threat: ThreatText = "linf:8/255"
    """threat model, NORM:EPS"""
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """share of the held-out training images that the threshold lets the detector flag"""
    steps: Positive = 100
    """steps of each attack on the evaluation set"""
    eot: Positive = 1
    """passes that an adaptive attack averages over, for models that draw"""
    fit_steps: Positive = 10
    """steps of the PGD attack whose images the classifier learns to tell"""
    epochs: Positive = 40
    """passes of the classifier's training over the clean and attacked images"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 0
    """evaluate on the first so many images; 0 for all"""
