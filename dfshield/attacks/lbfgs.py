"""Projected L-BFGS of many small problems at once, each inside a box of its own.

SciPy's L-BFGS-B has one problem a call. Here the images of a chunk go through the network together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfshield.attacks.budget import LINE_SEARCH

Function = Callable[[Tensor, Tensor], Tensor]
"""``(points (n,D), rows (n,)) -> values (n,)``, differentiable; `rows` are the problems that the points are of."""
ARMIJO = 1e-4
"""Share of the decrease that the gradient promises which a step has to bring."""


def value_and_gradient(function: Function, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n,) and gradients (n,D) of a function; what is not finite in a gradient counts as zero."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = function(points, rows)
        (gradient,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), gradient.nan_to_num(0, 0, 0)


@dataclass
class _History:
    """Steps (n,H,D), changes of the gradient (n,H,D) and their inverse products (n,H), the newest last; 0 for none."""

    steps: Tensor
    changes: Tensor
    inverse: Tensor

    def add(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Remember a step of the problems `rows`, where the curvature along it is positive."""
        product = (step * change).sum(dim=1)
        good = product > 1e-10 * change.square().sum(dim=1)
        rows, pairs = rows[good], ((self.steps, step), (self.changes, change), (self.inverse, 1 / product))
        for kept, new in pairs:
            kept[rows] = torch.cat((kept[rows, 1:], new[good][:, None]), dim=1)

    def forget(self, rows: Tensor) -> None:
        """Forget all steps of the problems `rows`."""
        self.inverse[rows] = 0

    def direction(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """-H g by the two loops (Nocedal and Wright, Algorithm 7.4)."""
        steps, changes, inverse = self.steps[rows], self.changes[rows], self.inverse[rows]
        rest, factors = gradient.clone(), torch.zeros_like(inverse)
        for index in reversed(range(inverse.shape[1])):
            factors[:, index] = inverse[:, index] * (steps[:, index] * rest).sum(dim=1)
            rest -= factors[:, index, None] * changes[:, index]
        newest = inverse[:, -1] * changes[:, -1].square().sum(dim=1)
        rest = torch.where(newest[:, None] > 0, rest / newest.clamp_min(1e-30)[:, None], rest)
        for index in range(inverse.shape[1]):
            again = inverse[:, index] * (changes[:, index] * rest).sum(dim=1)
            rest += (factors[:, index] - again)[:, None] * steps[:, index]
        return -rest


def minimise(
    function: Function, start: Tensor, low: Tensor, high: Tensor, iterations: int, history: int, tolerance: float
) -> Tensor:
    """Points (N,D) of low values of `function` within [low, high], each (N,D), from `start` (N,D).

    A problem ends when no step along the gradient lowers it, or when an iteration lowers it by less than the share
    `tolerance`. Variables at a bound that the gradient pushes out of the box are held there. An iteration takes one
    gradient and at most `LINE_SEARCH` values.
    """
    point = start.clone()
    rows = torch.arange(len(point), device=point.device)
    values, gradient = value_and_gradient(function, point, rows)
    shape = (len(point), history, point.shape[1])
    kept = _History(point.new_zeros(shape), point.new_zeros(shape), point.new_zeros(shape[:2]))
    for _ in range(iterations):
        x, slope = point[rows], gradient[rows]
        held = ((x <= low[rows]) & (slope > 0)) | ((x >= high[rows]) & (slope < 0))
        free = slope.masked_fill(held, 0)
        ahead = kept.direction(rows, free).masked_fill(held, 0)
        uphill = (ahead * free).sum(dim=1) >= 0
        ahead[uphill] = -free[uphill]
        # without a history the gradient's scale says nothing: a first trial across the box
        new = uphill | (kept.inverse[rows, -1] == 0)
        largest = ahead[new].abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        ahead[new] *= (high - low)[rows[new]].amax(dim=1, keepdim=True) / largest
        found, reached = _search(function, x, values[rows], slope, ahead, low[rows], high[rows], rows)
        moved = reached < values[rows]
        again = rows[~moved & ~new]  # a remembered step may point out of the box: once more along the gradient alone
        rows, x, found, reached, slope = (kind[moved] for kind in (rows, x, found, reached, slope))
        kept.forget(again)
        if len(rows):
            _, after = value_and_gradient(function, found, rows)
            kept.add(rows, found - x, after - slope)
            going = values[rows] - reached > tolerance * values[rows].abs()
            point[rows], values[rows], gradient[rows] = found, reached, after
            rows = rows[going]
        rows = torch.cat((rows, again)).sort().values
        if not len(rows):
            break
    return point


@torch.no_grad()
def _search(
    function: Function, x: Tensor, values: Tensor, slope: Tensor, ahead: Tensor, low: Tensor, high: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The first point along `ahead`, cut to the box, that is low enough, and its value; else the point itself."""
    found, reached = x.clone(), values.clone()
    left, length = torch.arange(len(x), device=x.device), 1.0
    for _ in range(LINE_SEARCH):
        trial = torch.clamp(x[left] + length * ahead[left], low[left], high[left])
        value = function(trial, rows[left])
        promised = (slope[left] * (trial - x[left])).sum(dim=1)
        good = (value <= values[left] + ARMIJO * promised) & (value < values[left])
        found[left[good]], reached[left[good]] = trial[good], value[good]
        left, length = left[~good], length / 2
        if not len(left):
            break
    return found, reached
