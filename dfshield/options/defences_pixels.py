"""Options of defences that squeeze, filter, compress or reconstruct the pixels of an image."""

from typing import Annotated

from pydantic import Field

from dfshield.options.common import DefenceName, Positive
from dfshield.options.defences import DefendOptions


class BitDepth(DefendOptions):
    """Reduction of the bit depth (Xu et al. 2018)."""

    defence: DefenceName = "bit-depth"
    """defence"""
    bits: Annotated[int, Field(ge=1, le=8)] = 4
    """bits of a pixel's channel; images of eight bits stay what they are at 8"""


class Median(DefendOptions):
    """Median filter (Xu et al. 2018)."""

    defence: DefenceName = "median"
    """defence"""
    window: Positive = 2
    """side of the square window in pixels, as published for CIFAR-10; 1 changes nothing"""


class Jpeg(DefendOptions):
    """JPEG compression (Dziugaite et al. 2016, Guo et al. 2018)."""

    defence: DefenceName = "jpeg"
    """defence"""
    quality: Annotated[int, Field(ge=1, le=100)] = 75
    """quality of the encoder"""


class TotalVariation(DefendOptions):
    """Total variation minimisation (Guo et al. 2018)."""

    defence: DefenceName = "total-variation"
    """defence"""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """probability that a pixel is kept and not dropped"""
    weight: Annotated[float, Field(gt=0)] = 0.03
    """weight of the total variation"""
    steps: Positive = 50
    """steps of the minimisation, a convention: 50 come within a percent of the minimum at the default weight"""
