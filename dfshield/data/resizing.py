"""Images of one shape brought to another: the size by bilinear interpolation, the channels by luma or repetition."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Images (N,C,H,W) in [0,1] at another size: bilinear, antialiased where they shrink."""
    if tuple(x.shape[2:]) == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def resize_to(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images (N,C,H,W) in [0,1], grey or RGB, as a model takes them: `shape` is its (C,H,W), with C of 1 or 3."""
    x = resized(x, *shape[1:])
    if x.shape[1] == 3 and shape[0] == 1:
        return (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)
    return x.expand(-1, shape[0], -1, -1)
