"""The classifier as the program uses it: a network behind its normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network behind its normalisation: images (N,C,H,W) in [0,1] to logits (N,classes).

    `mean` and `std` are per channel, for pixels in [0,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


def predict(model: torch.nn.Module, x: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """Logits (N,C) of a model in eval mode, without gradients."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part.contiguous(memory_format=torch.channels_last)) for part in x.split(batch)])
