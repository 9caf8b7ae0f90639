"""Options of the diversity metrics."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from dfshield.core.errors import InputError
from dfshield.options.common import Features, Positive, StageOptions

if TYPE_CHECKING:
    import torch


def check_neighbours(neighbours: int, images: int, which: str) -> None:
    """Raise InputError for a set of `neighbours` images or fewer."""
    if images <= neighbours:
        raise InputError(f"neighbours {neighbours}: there are {images} {which} images; use neighbours < {images}")


def check_bins(bins: int, real: int) -> None:
    """Raise InputError for fewer real images than bins."""
    if real < bins:
        raise InputError(f"bins {bins}: there are only {real} real images; use bins <= {real}")


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

    def check_sizes(self, real: int | None, synthetic: int | None) -> None:
        """Raise InputError for sets that are too small, by their numbers of images as far as they are known."""
        for which, images in (("real", real), ("synthetic", synthetic)):
            if images is not None:
                drawn = min(images, self.sample or images)
                check_neighbours(self.neighbours, drawn, which)
                if which == "real":
                    check_bins(self.bins, drawn)

    def described(self, device: "torch.device | None" = None) -> dict[str, Any]:
        """As that of all stages, without `vgg16`: where weights lie decides nothing, their content does."""
        return {name: value for name, value in super().described(device).items() if name != "vgg16"}
