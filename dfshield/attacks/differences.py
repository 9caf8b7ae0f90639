"""Gradients by finite differences, for models that give none or useless ones."""

from typing import Any

import torch
from torch import Tensor, nn

BATCH = 4096
"""Images that the model sees at once."""


class Differences(nn.Module):
    """A model whose gradient of the pixels is estimated by central differences of its logits (Wang et al. 2021, Eq 5).

    It stands around the model that is crafted on, so that every attack that follows gradients works without any. With
    `directions` below the number of pixels D the estimate is the mean over random directions v of signs of
    (z(x + h v) - z(x - h v)) / 2h times v, whose expectation is the gradient of the model smoothed by such v (Spall
    1992); from D on it goes through the pixels one by one. Directions come from the global generator.
    """

    def __init__(self, model: nn.Module, directions: int, step: float) -> None:
        super().__init__()
        self.model, self.directions, self.step = model, directions, step

    def forward(self, x: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,classes)."""
        logits: Tensor = _Estimated.apply(x, self) if x.requires_grad else self.model(x)
        return logits

    @torch.no_grad()
    def gradient(self, x: Tensor, weights: Tensor) -> Tensor:
        """Estimate (N,C,H,W) of the gradient at `x` of the logits times `weights` (N,classes)."""
        size = x[0].numel()
        total = torch.zeros_like(x)
        exact = self.directions >= size
        count = size if exact else self.directions
        at_once = max(1, BATCH // (2 * len(x)))
        for start in range(0, count, at_once):
            number = min(at_once, count - start)
            ways = self._pixels(x, start, number) if exact else self._signs(x, number)
            ahead, behind = (self._weighted((x + side * self.step * ways).flatten(0, 1), weights) for side in (1, -1))
            slopes = (ahead - behind).view(number, len(x), 1, 1, 1) / (2 * self.step)
            total += (slopes * ways).sum(dim=0)
        return total if exact else total / count

    def _weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        return (self.model(x).float() * weights.repeat(len(x) // len(weights), 1)).sum(dim=1)

    @staticmethod
    def _pixels(x: Tensor, start: int, number: int) -> Tensor:
        ways = torch.zeros((number, 1, x[0].numel()), device=x.device)
        ways[torch.arange(number), 0, torch.arange(start, start + number)] = 1
        return ways.view(number, 1, *x.shape[1:]).expand(number, *x.shape)

    @staticmethod
    def _signs(x: Tensor, number: int) -> Tensor:
        return torch.randint(0, 2, (number, *x.shape), device=x.device).to(x) * 2 - 1


class _Estimated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, around: Differences) -> Tensor:
        ctx.save_for_backward(x)
        ctx.around = around
        return around.model(x).float()

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.around.gradient(x, weights[0]), None
