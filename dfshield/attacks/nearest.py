"""The nearest misclassified point of each image: what attacks that look for the smallest perturbation keep."""

from collections.abc import Callable

import torch
from torch import Tensor

from dfshield.core.lp import Norm


def lengths(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each perturbation (N,C,H,W), shape (N,)."""
    return torch.linalg.vector_norm(delta.flatten(1), torch.inf if norm == "linf" else 2, dim=1)


class Nearest:
    """The nearest of all misclassified points seen for each of the images `x` (N,C,H,W)."""

    def __init__(self, x: Tensor, norm: Norm) -> None:
        self.x, self.norm = x, norm
        self.points = x.clone()
        """(N,C,H,W); the image itself where no misclassified point was seen."""
        self.distance = torch.full((len(x),), torch.inf, device=x.device)
        """(N,); infinite where no misclassified point was seen."""

    def see(self, points: Tensor, misclassified: Tensor, rows: Tensor | None = None) -> None:
        """Keep those of `points` (n,C,H,W) that are `misclassified` (n,) and nearer than what was seen before.

        They are of the images `rows` (n,), each at most once, by default of all. Points with values that are not finite
        are never kept.
        """
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows
        found = lengths(points - self.x[rows], self.norm)
        better = misclassified & (found < self.distance[rows])
        self.points[rows[better]] = points[better]
        self.distance[rows[better]] = found[better]

    @torch.no_grad()
    def draw_back(self, misclassified: Callable[[Tensor], Tensor], steps: int) -> None:
        """Look for nearer points along the lines to the images, by `steps` bisections.

        `misclassified` maps points (N,C,H,W) to (N,) bool.
        """
        far = self.points.clone()
        low, high = torch.zeros_like(self.distance), torch.ones_like(self.distance)
        for _ in range(steps):
            share = (low + high) / 2
            points = self.x + share.view(-1, *[1] * (self.x.ndim - 1)) * (far - self.x)
            found = misclassified(points)
            self.see(points, found)
            low, high = torch.where(found, low, share), torch.where(found, share, high)
