"""The three terms of the synthesis objective, each computed per synthesis batch.

A *group* stacks `k` independent batches along the first axis so that one pass serves them all; every term returns
one value per batch, shape (k,), as if each had been computed alone.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

TERMS = ("class", "feature", "prior")


def class_loss(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Cross entropy of logits (k·B, C) with labels (k·B,), mean over each batch (Eq 3)."""
    return F.cross_entropy(logits.float(), labels, reduction="none").view(k, -1).mean(1)


def total_variation(x: torch.Tensor, k: int) -> torch.Tensor:
    """Sum of the L2 norms of the differences in four directions, each over the whole batch (Eq 5, released code).

    `x` is (k·B, C, H, W) in normalised space.
    """
    right = x[:, :, :, 1:] - x[:, :, :, :-1]
    down = x[:, :, 1:] - x[:, :, :-1]
    diagonal = x[:, :, 1:, 1:] - x[:, :, :-1, :-1]
    antidiagonal = x[:, :, 1:, :-1] - x[:, :, :-1, 1:]
    return sum(
        (d.unflatten(0, (k, -1)).square().sum((1, 2, 3, 4)).sqrt() for d in (right, down, diagonal, antidiagonal)),
        start=torch.zeros(k, device=x.device),
    )


class BatchStatistics:
    """Watches the inputs of all BatchNorm2d layers of a network during one forward pass (Eq 4).

    After `network(x)`, `feature_loss(k)` is, per batch, the sum over layers of the L2 distances of the batch's means
    and biased variances from the layer's running statistics (not squared, all layers weighted alike).
    """

    def __init__(self, network: nn.Module) -> None:
        self.seen: list[tuple[nn.BatchNorm2d, torch.Tensor]] = []
        layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
        self.hooks = [layer.register_forward_pre_hook(self._record) for layer in layers]

    def _record(self, layer: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen.append((layer, inputs[0]))

    def _distances(self, k: int) -> Iterator[torch.Tensor]:
        for layer, values in self.seen:
            variance, mean = torch.var_mean(values.float().unflatten(0, (k, -1)), dim=(1, 3, 4), correction=0)
            assert layer.running_mean is not None and layer.running_var is not None
            yield (mean - layer.running_mean).norm(dim=1) + (variance - layer.running_var).norm(dim=1)

    def feature_loss(self, k: int) -> torch.Tensor:
        """Shape (k,); forgets the recorded inputs."""
        total = torch.stack(list(self._distances(k))).sum(0)
        self.seen.clear()
        return total

    def remove(self) -> None:
        """Detach the hooks from the network."""
        for hook in self.hooks:
            hook.remove()
