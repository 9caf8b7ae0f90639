"""Gaussian noise at test time, the base of randomised smoothing (Cohen et al., ICML 2019)."""

import torch
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.options.defences_random import Noise


class GaussianNoise(Transformation[Noise]):
    """Mean logits over copies x + N(0, σ²).

    Cohen et al. take the class that most copies vote for, and certify a radius; this is the smoothed network's mean
    logits, without a certificate. As published, noisy pixels are not clamped.
    """

    draws = True
    differentiable = True

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to noisy ones (N,C,H,W), which leave [0,1]."""
        return x + self.options.sigma * torch.randn(x.shape, generator=random).to(x)
