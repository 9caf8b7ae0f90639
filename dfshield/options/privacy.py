"""Options of the audit of synthetic images for their likeness to training images."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from dfshield.options.common import Features, StageOptions


class PrivacyOptions(StageOptions):
    """Compare synthetic images with the images that the classifier was trained on, and with others of their kind."""

    features: Features = "pixels"
    """space of the distances; teacher: the input of its last linear layer"""
    vgg16: str = ""
    """of features vgg16: file of torchvision's VGG16 weights"""
    limit: Annotated[int, Field(ge=0)] = 0
    """only the first so many images of each real set; 0 for all"""
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """share of the other real images that lie as near to a training image by chance as what counts as close"""

    @model_validator(mode="after")
    def _vgg16_has_weights(self) -> Self:
        if self.features == "vgg16" and not self.vgg16:
            raise ValueError("features vgg16 need its weights, which are never downloaded: give vgg16, a .pth file")
        return self
