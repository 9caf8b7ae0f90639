"""Total variation minimisation (Guo et al., Countering Adversarial Images using Input Transformations, ICLR 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.options.defences_pixels import TotalVariation

SMALLEST = 1e-3
"""Where the norm of a difference is rounded off, so that it has a curvature at zero."""


class TotalVariationMinimisation(Transformation[TotalVariation]):
    """Pixels are dropped at random, and the image is the one of least total variation near those that are kept.

    Every channel of every pixel is kept with probability `keep`, and the rest tells nothing about the result.
    """

    draws = True

    @torch.no_grad()
    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to images of the same shape and range; `random` is a generator of the CPU."""
        kept = (torch.rand(x.shape, generator=random) < self.options.keep).to(x)
        return reconstructed(x, kept, self.options.weight, self.options.steps)


def reconstructed(x: Tensor, kept: Tensor, weight: float, steps: int) -> Tensor:
    """Images z (N,C,H,W) in [0,1] that minimise ½‖kept·(z - x)‖² + weight·TV(z); `kept` is one or zero, as large as x.

    TV is the paper's TV_2: over all channels, the sum of the l2 norms of the differences of successive rows, and of
    successive columns. The paper prints the distance without the square; its published code squares and halves it.
    That code calls L-BFGS; here every step divides the gradient by an upper bound of the curvature of each pixel (norms
    are replaced by the parabolas that touch them from above), so that the objective cannot rise and a pixel stays a
    mean of its neighbours and its own value. A dropped pixel starts as the mean of the kept ones around it, or else of
    those of its channel; a channel without a kept pixel becomes black.
    """
    z = _filled(x, kept)
    for _ in range(steps):
        slope, curvature = kept * (z - x), kept.clone()
        for axis, size in ((2, z.shape[2]), (3, z.shape[3])):
            change = z.diff(dim=axis)
            pull = weight / (change.square().sum(5 - axis, keepdim=True) + SMALLEST**2).sqrt()
            flow = pull * change
            slope.narrow(axis, 1, size - 1).add_(flow)
            slope.narrow(axis, 0, size - 1).sub_(flow)
            curvature.narrow(axis, 1, size - 1).add_(pull, alpha=2)
            curvature.narrow(axis, 0, size - 1).add_(pull, alpha=2)
        z = z - slope / curvature.clamp_min(1e-12)  # an image of one dropped pixel has none
    return z.clamp(0, 1)


def _filled(x: Tensor, kept: Tensor) -> Tensor:
    """Images (N,C,H,W) whose dropped pixels are the mean of the kept ones nearby."""
    known = x * kept
    overall = known.sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp_min(1)
    near, count = (F.avg_pool2d(given, 3, 1, 1) for given in (known, kept))
    return torch.where(kept > 0, x, torch.where(count > 0, near / count.clamp_min(1e-6), overall))
