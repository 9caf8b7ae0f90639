"""Crops and rescaling (Guo et al., ICLR 2018, Countering adversarial images using input transformations)."""

import torch
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.defences.resize_pad import Window, drawn_from, pixels, resampled
from dfshield.options.defences_random import CropRescale


class CropEnsemble(Transformation[CropRescale]):
    """Mean logits over random crops of one size, each rescaled bilinearly to the size of the image.

    A crop has `share` of either side, rounded down; all places are equally likely.
    """

    draws = True
    differentiable = True

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to one crop of each, (N,C,H,W) in [0,1]."""
        windows: list[Window] = []
        for side, place in zip(
            x.shape[2:], torch.rand((2, len(x)), generator=random, dtype=torch.float64), strict=True
        ):
            crop = pixels(side, self.options.share)
            windows.append((drawn_from(0, side - crop, place), crop, 0, side))
        return resampled(x, *windows, bilinear=True)
