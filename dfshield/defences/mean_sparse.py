"""MeanSparse (Amini et al. 2024, arXiv 2406.05927): small variations of a channel around its mean are blocked."""

from typing import Any

import torch
from torch import Tensor, nn

from dfshield.defences.defence import Defence, straight_through
from dfshield.defences.layers import with_layers
from dfshield.options.defences_activations import MeanSparse


class Sparse(nn.Module):
    """Outputs h (N,C,H,W) of a BatchNorm layer to the channel's mean where |h - mean| <= threshold · std, else to h.

    Mean and standard deviation of an output channel follow from the layer's affine parameters in eval mode: beta and
    |gamma|, or 0 and 1 without them. The derivative is 0 in that band and 1 outside, and 1 everywhere with `bpda`.
    """

    mean: Tensor
    band: Tensor

    def __init__(self, layer: nn.BatchNorm2d, threshold: float, bpda: bool = False) -> None:
        super().__init__()
        self.bpda = bpda
        mean, std = torch.tensor(0.0), torch.tensor(1.0)
        if layer.affine:
            mean, std = layer.bias.detach().view(-1, 1, 1), layer.weight.detach().abs().view(-1, 1, 1)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("band", threshold * std)

    def forward(self, h: Tensor) -> Tensor:
        sparse = torch.where((h - self.mean).abs() <= self.band, self.mean, h).to(h.dtype)
        return straight_through(sparse, h) if self.bpda else sparse


class MeanSparsification(Defence[MeanSparse]):
    """MeanSparse behind every ``nn.BatchNorm2d`` layer (see `Sparse`); it reads no data.

    The derivative vanishes in the band, so the surrogate takes the identity's there (BPDA, Athalye et al. 2018). A
    network without such a layer is left as it is.

    Differs from the publication: mean and standard deviation follow from the layer's affine parameters, and are not
    measured on the training set. All BatchNorm layers count, also those that no activation follows.
    """

    def protect(self, model: nn.Module) -> nn.Module:
        return self._sparse(model)

    def surrogate(self, model: nn.Module) -> nn.Module:
        return self._sparse(model, bpda=True)

    def _sparse(self, model: nn.Module, **how: Any) -> nn.Module:
        return with_layers(model, nn.BatchNorm2d, lambda layer: Sparse(layer, self.options.threshold, **how))
