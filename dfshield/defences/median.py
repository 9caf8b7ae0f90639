"""Median filter (Xu et al., Feature Squeezing, NDSS 2018)."""

import torch
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.options.defences_pixels import Median


class MedianFilter(Transformation[Median]):
    """Every pixel becomes the median of the square window around it, each channel by itself.

    The conventions are those of the published code, which calls `scipy.ndimage.median_filter`: a window of an even side
    reaches one pixel further up and left than down and right; of an even number of values the upper of the two middle
    ones is taken; beyond the border the image is mirrored, the pixel at the border included (b a | a b c).
    """

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to images of the same shape and range, of any size."""
        side = self.options.window
        rows, columns = (_mirrored(length, side).to(x.device) for length in x.shape[2:])
        windows = x[:, :, rows][..., columns].unfold(2, side, 1).unfold(3, side, 1).flatten(4)
        return windows.kthvalue(side**2 // 2 + 1).values


def _mirrored(length: int, side: int) -> Tensor:
    """Which of `length` pixels stand in a row with its mirrored borders (length + side - 1,)."""
    places = torch.arange(-(side // 2), length + (side - 1) // 2) % (2 * length)
    return places.minimum(2 * length - 1 - places)
