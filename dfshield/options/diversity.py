"""Options of the diversity metrics."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dfshield.options.common import Features, Positive, StageOptions


class DiversityOptions(StageOptions):
    """Compare a training set with real images: how much of them it covers."""

    split: Literal["train", "dev", "test"] = "train"
    """part of the real data set"""
    features: Features = "teacher"
    """space of precision, recall, density and coverage; teacher: the input of its last linear layer"""
    neighbours: Positive = 5
    """nearest neighbours that set the radius of an image's ball (k)"""
    bin_features: Features = "pixels"
    """space of the bins of NDB and JSD"""
    bins: Annotated[int, Field(ge=2)] = 100
    """bins of NDB and JSD: k-means clusters of the real images (K)"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """significance level at which a bin counts as different"""
    sample: Annotated[int, Field(ge=0)] = 0
    """compare so many randomly drawn images of either set; 0 for all"""
    vgg16: str = ""
    """torchvision's VGG16 weights, for features vgg16; in a config below data_dir if not absolute"""

    @model_validator(mode="after")
    def _vgg16_has_weights(self) -> "DiversityOptions":
        if "vgg16" in (self.features, self.bin_features) and not self.vgg16:
            raise ValueError("features vgg16 need its weights, which are never downloaded: give vgg16, a .pth file")
        return self
