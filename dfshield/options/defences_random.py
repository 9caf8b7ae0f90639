"""Options of defences that transform images at random."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.options.common import DefenceName, Positive
from dfshield.options.defences import DefendOptions

PositiveShare = Annotated[float, Field(gt=0, le=1)]


class ResizePad(DefendOptions):
    """Random size and random zero padding (Xie et al. 2018)."""

    defence: DefenceName = "resize-pad"
    """defence"""
    smallest: PositiveShare = 0.9
    """smallest size, as a share of the side; published: 299 pixels of 331"""
    mode: Literal["nearest", "bilinear"] = "nearest"
    """interpolation; published: nearest"""


class CropRescale(DefendOptions):
    """Mean logits over random crops, each rescaled to the size of the image (Guo et al. 2018)."""

    defence: DefenceName = "crop-rescale"
    """defence"""
    share: PositiveShare = 0.9
    """side of a crop, as a share of the image's; published: 90 pixels of 224, too few for small images"""
    crops: Positive = 10
    """crops of each image; published: 30"""

    @property
    def passes(self) -> int:
        """Crops of an image."""
        return self.crops


class Noise(DefendOptions):
    """Mean logits over Gaussian noise, as in randomised smoothing (Cohen et al. 2019)."""

    defence: DefenceName = "noise"
    """defence"""
    sigma: Annotated[float, Field(gt=0)] = 0.1
    """standard deviation of the noise, in units of the range of a pixel; a convention"""
    copies: Positive = 8
    """noisy copies of each image; a convention"""

    @property
    def passes(self) -> int:
        """Noisy copies of an image."""
        return self.copies
