"""Options of defences that are fitted before they defend."""

from typing import Annotated

from pydantic import Field, model_validator

from dfshield.options.common import DefenceName, Positive
from dfshield.options.defences import DefendOptions


class Quilting(DefendOptions):
    """Image quilting (Guo et al. 2018): the image rebuilt from patches of other images."""

    defence: DefenceName = "quilting"
    """defence"""
    patches: Positive = 2000
    """patches in the bank; published: a million"""
    patch: Positive = 5
    """side of a patch in pixels, as published; at most three eighths of the image's shorter side"""
    neighbours: Positive = 1
    """nearest patches of the bank, of which one is drawn; 1, as in the published code, draws nothing"""

    @model_validator(mode="after")
    def _bank_has_the_neighbours(self) -> "Quilting":
        if self.neighbours > self.patches:
            raise ValueError(
                f"neighbours {self.neighbours}: the bank has {self.patches} patches; use neighbours <= {self.patches}"
            )
        return self


class Thermometer(DefendOptions):
    """Thermometer encoding (Buckman et al. 2018): the network sees which levels a pixel exceeds."""

    defence: DefenceName = "thermometer"
    """defence"""
    levels: Annotated[int, Field(ge=2, le=256)] = 16
    """levels of a pixel's channel, as published"""
    epochs: Annotated[int, Field(ge=0)] = 5
    """passes over the training set, in which the read-out of the code is fitted; 0 keeps the quantised image"""
    batch: Positive = 50
    """images per mini-batch"""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate"""


class MixupInference(DefendOptions):
    """Mixup inference (Pang et al. 2020): mean logits over mixtures of the image with others."""

    defence: DefenceName = "mixup-inference"
    """defence"""
    share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """share of the image in a mixture (λ); published: 0.5 to 0.6"""
    mixtures: Positive = 10
    """mixtures of each image; published: 30"""
    pool: Positive = 500
    """images to mix with, or as many as the training set has"""

    @property
    def passes(self) -> int:
        """Mixtures of an image."""
        return self.mixtures
