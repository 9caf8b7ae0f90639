"""Structural similarity of images, differentiable."""

import torch.nn.functional as F
from torch import Tensor

WINDOW = 7
"""Pixels of a side of the window, fewer for smaller images."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (N,) of images (N,C,H,W) in [0,1], at most 1 (Wang et al. 2004, Eq 13).

    Windows are square with equal weights, and lie inside of the image; the mean is over windows and channels. The
    constants are the usual K_1 = 0.01 and K_2 = 0.03.
    """
    side = min(WINDOW, *a.shape[2:])

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, stride=1)

    luminance, contrast = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    found = (2 * mean_a * mean_b + luminance) * (2 * covariance + contrast)
    found = found / ((mean_a**2 + mean_b**2 + luminance) * (variances + contrast))
    return found.flatten(1).mean(1)
