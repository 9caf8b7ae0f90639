"""Structural similarity of images (Wang et al., Image Quality Assessment, IEEE TIP 2004)."""

import torch.nn.functional as F
from torch import Tensor

WINDOW = 7
C1, C2 = 0.01**2, 0.03**2
"""The constants of Eq 13 for pixels in [0,1]."""


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity (N,) of images (N,C,H,W) in [0,1], at most 1, which equal images have; Eq 13 and 17.

    The statistics are those of square windows of 7 x 7 pixels with equal weights, of the largest window of an odd side
    where an image is smaller, at all places where the window lies within the image. The mean is over places and
    channels. The paper's Gaussian window of 11 pixels would not fit small images.
    """
    side = min(WINDOW, *(length - (length + 1) % 2 for length in x.shape[2:]))
    dtype = x.dtype
    x, y = x.double(), y.double()  # a variance is a small difference of squares

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, side, 1)

    of_x, of_y = mean(x), mean(y)
    variances = mean(x * x) - of_x**2 + mean(y * y) - of_y**2
    covariance = mean(x * y) - of_x * of_y
    alike = (2 * of_x * of_y + C1) * (2 * covariance + C2)
    return (alike / ((of_x**2 + of_y**2 + C1) * (variances + C2))).flatten(1).mean(1).to(dtype)
