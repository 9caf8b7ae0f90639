"""Random resizing and padding (Xie et al., ICLR 2018, Mitigating adversarial effects through randomization)."""

from typing import TypeAlias

import torch
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.options.defences_random import ResizePad

Window: TypeAlias = tuple[int | Tensor, int | Tensor, int | Tensor, int | Tensor]
"""Along one side, in pixels, for each image (N,) or for all: start and size of the source, then of the target."""


class RandomResizing(Transformation[ResizePad]):
    """Each image at a random size, at a random place among zeros.

    All sizes from `smallest` of the side, rounded down, to the whole side are equally likely, and so are all places.
    Height and width shrink by the same share, but for rounding. Xie et al. enlarge images (299 pixels to 299 ... 331)
    for a network that takes any size; here images shrink, because a network takes one size only.
    """

    draws = True
    differentiable = True

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to images (N,C,H,W) in [0,1]."""
        share, *places = torch.rand((3, len(x)), generator=random, dtype=torch.float64)
        windows: list[Window] = []
        for side, place in zip(x.shape[2:], places, strict=True):
            size = drawn_from(pixels(side, self.options.smallest), side, share)
            windows.append((0, side, drawn_from(0, side - size, place), size))
        return resampled(x, *windows, bilinear=self.options.mode == "bilinear")


def pixels(side: int, share: float) -> int:
    """Pixels in `share` of `side`, rounded down, at least one."""
    return max(1, int(share * side + 1e-9))  # 0.29 of 100 is 29 in spite of the arithmetic


def drawn_from(low: int, high: int | Tensor, uniform: Tensor) -> Tensor:
    """Whole numbers (N,) from `low` to `high`, both included and all equally likely, by draws `uniform` from [0,1)."""
    return low + (uniform * (high - low + 1)).long()


def resampled(x: Tensor, vertical: Window, horizontal: Window, *, bilinear: bool) -> Tensor:
    """The source rectangle of each of the images (N,C,H,W), resized to its target rectangle; zeros around that.

    It is `torch.nn.functional.interpolate` (``nearest``, or ``bilinear`` without ``align_corners``) of the source
    alone, with windows of its own for each image. Both sides are products with matrices, whose gradients are
    deterministic on all devices, which those of ``grid_sample`` are not.
    """
    # bfloat16 cannot tell a pixel from the next
    with torch.autocast(x.device.type, enabled=False):
        rows = _weights(x, x.shape[2], vertical, bilinear)
        columns = _weights(x, x.shape[3], horizontal, bilinear)
        return torch.einsum("nvw,nchw->nchv", columns, torch.einsum("nhi,nciw->nchw", rows, x))


def _weights(x: Tensor, side: int, window: Window, bilinear: bool) -> Tensor:
    """Weights (N,side,side) of the pixels of a side, the last dimension, in those of the resampled side."""
    start, length, offset, size = (torch.as_tensor(number, device=x.device).view(-1, 1) for number in window)
    index = torch.arange(side, device=x.device)
    target = index - offset  # (N,side), pixels of the target rectangle counted from its first
    if bilinear:
        wide = torch.promote_types(x.dtype, torch.float32)
        place = ((target.to(wide) + 0.5) * length / size - 0.5).clamp(min=0).minimum(length - 1)
    else:
        place = target * length // size
    weights = (1 - ((start + place)[:, :, None] - index).abs()).clamp(min=0)
    inside = (target >= 0) & (target < size)
    return (weights * inside[:, :, None]).to(x.dtype)
