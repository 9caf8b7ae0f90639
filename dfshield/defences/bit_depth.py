"""Reduction of the bit depth (Xu et al., Feature Squeezing, NDSS 2018)."""

import torch
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.options.defences_pixels import BitDepth


class BitDepthReduction(Transformation[BitDepth]):
    """Every channel of every pixel is rounded to a multiple of 1 / (2^bits - 1), a half to the even multiple.

    So 2^bits values are left, 0 and 1 among them.
    """

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to images of the same shape and range."""
        top = 2**self.options.bits - 1
        return (x * top).round() / top
