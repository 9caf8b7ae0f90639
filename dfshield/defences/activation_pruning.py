"""Stochastic activation pruning (Dhillon et al., ICLR 2018)."""

import torch
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.defences.defence import Defence, drawn_for
from dfshield.defences.layers import with_layers
from dfshield.options.defences_activations import ActivationPruning


class Pruning(nn.Module):
    """Prunes activations h of any shape (N,…) at random, each image by itself; the expectation is h.

    With p_i = |h_i| / Σ|h| over the image's D activations, and r = `samples` · D draws, h_i stays with probability
    k_i = 1 - (1 - p_i)^r, as h_i / k_i, and is 0 otherwise. Draws come from the global generator, or from `random`, a
    generator for each image. Mask and scale are constants in the backward pass: the derivative is 1 / k_i or 0.
    """

    def __init__(self, samples: float) -> None:
        super().__init__()
        self.samples = samples
        self.random: list[torch.Generator] | None = None

    def forward(self, h: Tensor) -> Tensor:
        size = h.detach().flatten(1).float().abs()
        smallest = torch.finfo(torch.float32).tiny  # an image without activations has the sum 0
        p = size / size.sum(1, keepdim=True).clamp_min(smallest)
        keep = -torch.expm1(self.samples * p.shape[1] * torch.log1p(-p))
        drawn = torch.rand_like(keep) if self.random is None else _drawn(keep, self.random)
        scale = torch.where(drawn < keep, 1 / keep.clamp_min(smallest), 0)
        return (h * scale.view_as(h)).to(h.dtype)


def _drawn(like: Tensor, random: list[torch.Generator]) -> Tensor:
    """Uniform numbers in [0,1) of the form (N,D) of `like`, row by row of its own generator."""
    if len(like) != len(random):
        raise InputError(
            f"activation-pruning: a ReLU layer sees {len(like)} rows where there are {len(random)} images; "
            "use a network that keeps the images apart along the first dimension"
        )
    drawn = torch.empty(like.shape)
    for row, source in zip(drawn, random, strict=True):
        row.uniform_(generator=source)
    return drawn.to(like.device)


class Pruned(nn.Module):
    """A network whose `Pruning` layers draw by the content of each image and a seed; images (N,C,H,W) to logits."""

    def __init__(self, network: nn.Module, options: ActivationPruning) -> None:
        super().__init__()
        self.network, self.options = network, options

    def forward(self, x: Tensor) -> Tensor:
        random = [drawn_for(image, self.options) for image in x.split(1)] if len(x) else []
        for layer in self.network.modules():
            if isinstance(layer, Pruning):
                layer.random = random
        logits: Tensor = self.network(x)
        return logits


class StochasticPruning(Defence[ActivationPruning]):
    """SAP: activations behind every ReLU layer are pruned at random, small ones more often (see `Pruning`).

    The defended model draws by the content of each image and the seed, so a verdict can be repeated, and an attacker,
    who has other draws, cannot know them beforehand. The surrogate draws anew at each call from the global generator;
    its gradients take mask and scale for constants. Only ``nn.ReLU`` layers count: a function like ``torch.relu`` that
    the network calls itself is not followed, and a network without such a layer is left as it is.

    Differs from the publication: each activation is drawn for by itself, with the probability that one of r draws with
    replacement hits it, and not by r draws for the layer. The expectation is the same; the number of activations that
    stay varies more.
    """

    def protect(self, model: nn.Module) -> nn.Module:
        pruned = self.surrogate(model)
        return model if pruned is model else Pruned(pruned, self.options).eval()

    def surrogate(self, model: nn.Module) -> nn.Module:
        return with_layers(model, nn.ReLU, lambda layer: Pruning(self.options.samples))
