"""Feature squeezing as a detector (Xu et al., Feature Squeezing: Detecting Adversarial Examples in Deep Neural
Networks, NDSS 2018).
"""

import torch
from torch import Tensor, nn

from dfshield.defences.bit_depth import BitDepthReduction
from dfshield.defences.defence import straight_through
from dfshield.defences.median import MedianFilter
from dfshield.options.defences_pixels import BitDepth, Median
from dfshield.options.detectors import SqueezingDetector


class FeatureSqueezing(nn.Module):
    """The largest l1 distance (N,) between the probabilities of an image and of its squeezed versions.

    Squeezers are fewer bits a pixel and a median filter, together as published (joint detection, maximum). Their
    derivative is that of the identity, so that an attack sees through them.
    Differs from the publication: no non-local means.
    """

    def __init__(self, model: nn.Module, bits: int, window: int) -> None:
        super().__init__()
        self.network = (model,)  # not as a part: what becomes of a detector's weights must not become of the model's
        self.squeezers = (BitDepthReduction(BitDepth(bits=bits)), MedianFilter(Median(window=window)))

    def forward(self, x: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        plain, distances = logits.softmax(dim=1), []
        for squeezer in self.squeezers:
            squeezed = straight_through(squeezer.transform(x.detach(), None), x)
            distances.append((self.network[0](squeezed).float().softmax(dim=1) - plain).abs().sum(dim=1))
        return torch.stack(distances).amax(dim=0)


def fit_squeezing(
    model: nn.Module, x: Tensor, y: Tensor, options: SqueezingDetector, random: torch.Generator
) -> nn.Module:
    """Nothing is fitted but the threshold."""
    return FeatureSqueezing(model, options.bits, options.window)
