"""k-winners-take-all (Xiao et al., ICLR 2020): only the largest activations of a layer stay."""

import torch
from torch import Tensor, fx, nn

from dfshield.defences.defence import Defence, straight_through
from dfshield.defences.layers import with_layers
from dfshield.options.defences_activations import KWta


@fx.wrap  # a graph has it as one step: k needs the number of activations, which a trace does not know
def winners(h: Tensor, share: float) -> Tensor:
    """Activations (N,…) of which each image keeps its k largest, with 0 elsewhere; k = share · D, rounded down.

    D is the number of an image's activations; k is at least 1. What is as large as the last winner wins, too.
    """
    flat = h.flatten(1)
    k = max(1, int(share * flat.shape[1] + 1e-6))  # as a float, 0.29 · 100 is below 29
    last = flat.detach().topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    return torch.where(flat >= last, flat, 0).view_as(h)


class Winners(nn.Module):
    """Activations (N,…) to those that win (see `winners`).

    The derivative is 1 for winners and 0 for others, and 1 everywhere with `bpda`.
    """

    def __init__(self, share: float, bpda: bool = False) -> None:
        super().__init__()
        self.share, self.bpda = share, bpda

    def forward(self, h: Tensor) -> Tensor:
        kept = winners(h, self.share)
        return straight_through(kept, h) if self.bpda else kept


class KWinners(Defence[KWta]):
    """k-WTA in place of every ``nn.ReLU`` layer: a share of each image's activations in the layer stays.

    The network jumps wherever a winner changes, so the surrogate's gradient passes as that of the ReLU (BPDA, Athalye
    et al. 2018). Only ``nn.ReLU`` layers count: a function like ``torch.relu`` that the network calls itself stays,
    and a network without such a layer is left as it is.

    Differs from the publication: there the network is trained with k-WTA; here it was trained with ReLU and is used
    without further training. So winners are taken among what the ReLU lets through: no negative activation wins.
    """

    def protect(self, model: nn.Module) -> nn.Module:
        return with_layers(model, nn.ReLU, lambda layer: Winners(self.options.winners))

    def surrogate(self, model: nn.Module) -> nn.Module:
        return with_layers(model, nn.ReLU, lambda layer: Winners(self.options.winners, bpda=True))
