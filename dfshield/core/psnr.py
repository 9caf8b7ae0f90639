"""Peak signal-to-noise ratio of images."""

from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """10 log10(1 / MSE) in decibel, (N,), of images (N,C,H,W) in [0,1]; infinite for equal images.

    The mean squared error is over all pixels and channels of an image; the peak is 1.
    """
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return (-10 * error.log10()).to(x.dtype)
