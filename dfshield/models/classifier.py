"""The classifier as the program uses it: a network behind its normalisation."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network behind its normalisation: images (N,C,H,W) in [0,1] to logits (N,classes).

    `mean` and `std` are per channel, for pixels in [0,1]. `build` makes another network of the same kind, with first
    weights of a `seed` if one is given, for copies of a network that cannot be copied (see
    `dfshield.models.standins.settle`).
    """

    mean: Tensor
    std: Tensor
    layout = torch.channels_last
    """Memory layout in which the network works, of images and weights."""
    anew = False
    """Whether a deep copy of the network answers from the original, so that `build` has to make it."""

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        build: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.build = net, build
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        logits: Tensor = self.net(z if self.layout == torch.channels_last else z.contiguous())
        return logits

    @torch.no_grad()  # or tensors of scripted parts are copied with their graphs
    def __deepcopy__(self, memo: dict[int, Any]) -> "Classifier":
        made = Classifier.__new__(Classifier)
        memo[id(self)] = made
        if self.anew:
            memo[id(self.net)] = self.second()
        made.__dict__.update(copy.deepcopy(self.__dict__ | {"build": None}, memo) | {"build": self.build})
        return made

    def second(self, **seed: int) -> nn.Module:
        """Another network with the same tensors, in the same layout, and modes, as `build` makes it."""
        assert self.build is not None
        net = self.build(**seed).to(self.mean.device)
        net.load_state_dict(self.net.state_dict())
        for own, like in zip(net.modules(), self.net.modules(), strict=True):
            own.training = like.training
        for parameter, original in zip(net.parameters(), self.net.parameters(), strict=True):
            parameter.requires_grad_(original.requires_grad)
            if parameter.stride() != original.stride():  # the layout decides in which order a layer draws
                parameter.data = original.detach().clone()
        return net


def predict(model: torch.nn.Module, x: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """Logits (N,C) of a model in eval mode, without gradients."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part.contiguous(memory_format=torch.channels_last)) for part in x.split(batch)])
