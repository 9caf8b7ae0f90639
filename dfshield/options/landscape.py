"""Options of the loss landscape around a model's weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dfshield.core.threat import BallText
from dfshield.options.common import Positive, StageOptions

GRADIENT = 2
"""Forward passes that a gradient of the pixels counts."""
Length = Annotated[float, Field(gt=0)]


class LandscapeOptions(StageOptions):
    """Measure the loss of a model around its weights, along random directions of the space of weights."""

    loss: Literal["adversarial", "clean"] = "adversarial"
    """cross entropy of images that PGD has attacked at the model's own weights, or of images as they are"""
    threat: BallText = "linf:8/255"
    """threat model, NORM:EPS"""
    steps: Positive = 10
    """steps of PGD, of ε/4 each; every image takes all of them"""
    points: Annotated[int, Field(ge=3)] = 31
    """points of the surface along either direction; an odd number, so that the model itself is one of them"""
    extent: Length = 1.0
    """the surface goes from -extent to extent, in norms of the filters"""
    radius: Length = 0.5
    """radius of the circle on which the rise of the loss is averaged, in norms of the filters"""
    angles: Positive = 8
    """points on the circle"""
    pairs: Positive = 5
    """pairs of directions, each with a circle; the first has the surface"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 1000
    """use only the first so many images; 0 for all"""
    batch: Positive = 500
    """images that go through the network together"""

    @model_validator(mode="after")
    def _model_is_a_point(self) -> "LandscapeOptions":
        if self.points % 2 == 0:
            raise ValueError(f"points ({self.points}): the model itself is a point of an odd number alone; add one")
        return self

    @property
    def passes(self) -> int:
        """Forward passes of an image: the answer, the attack, the surface, the circles and their centre."""
        attacked = GRADIENT * self.steps if self.loss == "adversarial" else 0
        return attacked + self.points**2 + self.pairs * self.angles + 2
