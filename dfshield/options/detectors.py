"""Options of detectors of attacked images and of their evaluation. What one detector alone reads is in its class."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.core.threat import ThreatText
from dfshield.options.common import DetectorName, Positive, StageOptions

HELD_OUT = 0.2
"""Share of the training set that the threshold is set on, and the detector not fitted on."""
PAIRS = 2
"""Attacks on each image that a detector learns from."""
STRATEGIES = 5
"""Gradients of a step of all strategies of the adaptive attack: one, one and three."""
GRADIENT = 2
"""Forward passes that a gradient of the pixels counts."""


class DetectOptions(StageOptions):
    """Fit a detector of attacked images on a training set, and evaluate it before attacks that know of it."""

    entries = ("detector", registry.DETECTORS)

    detector: DetectorName = "classifier"
    """detector"""
    threat: ThreatText = "linf:8/255"
    """threat model, NORM:EPS"""
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """share of the held-out training images that the threshold lets the detector flag"""
    steps: Positive = 100
    """steps of each attack on the evaluation set"""
    restarts: Positive = 5
    """rounds of the adaptive attack: to any other class, then to each of the others, the likeliest first"""
    eot: Positive = 1
    """passes that an adaptive attack averages over, for models that draw"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 0
    """evaluate on the first so many images; 0 for all"""

    @property
    def passes(self) -> int:
        """Passes of the network for one score of an image."""
        return 1

    @property
    def evaluation_passes(self) -> float:
        """Forward passes for one image: as it is, both attacks to their ends, and both verdicts."""
        adaptive = self.restarts * STRATEGIES * GRADIENT * self.steps * self.eot * self.passes
        return self.passes + GRADIENT * self.steps + adaptive + 2 * self.passes

    def fitting_passes(self, images: int) -> float:
        """Forward passes of a fit on so many images, those held out included."""
        held = max(1, int(HELD_OUT * images))
        return self.learning_passes(images - held) + held * self.passes

    def learning_passes(self, images: int) -> float:
        """Those of them before the threshold, on the images that are not held out."""
        return images


class PairedDetector(DetectOptions):
    """A detector that learns from clean images and attacked versions of them."""

    fit_steps: Positive = 10
    """steps of the PGD attack whose images the detector learns to tell"""

    def learning_passes(self, images: int) -> float:
        """The network's own answers, the attacks with their verdicts, and outputs on all that this gives; at most."""
        return images * (1 + PAIRS * (GRADIENT * self.fit_steps + 1) + (1 + PAIRS) * self.passes)


class SecondaryDetector(PairedDetector):
    """Secondary classifier on the logits (Nayak et al. 2022)."""

    detector: DetectorName = "classifier"
    """detector"""
    epochs: Positive = 40
    """passes of the classifier's training over the clean and attacked images"""


class MahalanobisDetector(DetectOptions):
    """Distance of the penultimate features from the nearest class (Lee et al. 2018)."""

    detector: DetectorName = "mahalanobis"
    """detector"""


class LidDetector(PairedDetector):
    """Local intrinsic dimensionality (Ma et al. 2018)."""

    detector: DetectorName = "lid"
    """detector"""
    neighbours: Annotated[int, Field(ge=2)] = 20
    """nearest images whose distances count (k), as published"""
    reference: Annotated[int, Field(ge=2)] = 100
    """images among which they are sought, as many as a published mini-batch has"""

    @model_validator(mode="after")
    def _reference_has_the_neighbours(self) -> Self:
        if self.neighbours > self.reference - 1:
            raise ValueError(
                f"neighbours {self.neighbours}: the reference has {self.reference} images, of which one may be the "
                f"image itself; use neighbours <= {self.reference - 1}"
            )
        return self


class SqueezingDetector(DetectOptions):
    """Feature squeezing (Xu et al. 2018)."""

    detector: DetectorName = "squeezing"
    """detector"""
    bits: Annotated[int, Field(ge=1, le=8)] = 5
    """bits of a pixel's channel, as published for CIFAR-10"""
    window: Positive = 2
    """side of the median filter's window in pixels, as published for CIFAR-10"""

    @property
    def passes(self) -> int:
        """The image and its two squeezed versions."""
        return 3

    def learning_passes(self, images: int) -> float:
        """None: only the threshold is set."""
        return 0
