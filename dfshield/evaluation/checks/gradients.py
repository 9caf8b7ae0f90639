"""Whether input gradients say what the model does."""

import torch
from torch import Tensor

from dfshield.attacks.base import differentiable, input_gradient, margin
from dfshield.core.rng import generator
from dfshield.evaluation.checks.case import Case, Finding, absent
from dfshield.options.checks import DIRECTIONS

COSINE = 0.8
"""Least median cosine between slopes by gradients and by finite differences."""
LENGTH = 1 / 16
"""Half the length of a finite difference, in units of ε."""


def shattering(case: Case) -> Finding:
    """Slopes of the margin by its gradient agree with central differences along random directions.

    The check of Athalye et al. (2018) for shattered, wrong or missing gradients. For each of the first images that are
    right, the cosine between its `DIRECTIONS` slopes by gradient and by difference is taken, 0 where the gradient or
    all differences vanish. The median over images is the figure; it passes from `COSINE` on.
    """
    rows = case.right.nonzero()[: case.options.gradients, 0]
    if not len(rows) or case.threat.eps == 0:
        return absent("no image is right without attack, or ε is 0")
    x, y = case.x[rows], case.y[rows]
    random = generator("checks", "directions", case.options.seed)
    length = case.threat.eps * LENGTH
    _, gradient = input_gradient(case.victim, x, y, margin)
    slopes, differences = [], []
    for _ in range(DIRECTIONS):
        direction = _direction(x, case.threat.norm, random) * length
        slopes.append(2 * (gradient * direction).flatten(1).sum(dim=1).double())
        differences.append(_margin(case, x + direction, y) - _margin(case, x - direction, y))
    cosine = _cosine(torch.stack(slopes, dim=1), torch.stack(differences, dim=1))
    zero = int((gradient.flatten(1) == 0).all(dim=1).sum())
    median = float(cosine.median())
    text = f"median cosine of {len(rows)} images' slopes, at least the limit; {zero} of them have no gradient"
    return Finding("passed" if median >= COSINE else "failed", round(median, 6), COSINE, text)


def _direction(x: Tensor, norm: str, random: torch.Generator) -> Tensor:
    drawn = torch.randn(x.shape, generator=random).to(x)
    return drawn.sign() if norm == "linf" else drawn / drawn.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@torch.no_grad()
def _margin(case: Case, x: Tensor, y: Tensor) -> Tensor:
    return margin(differentiable(case.model)(x).double(), y)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair of rows (N,D): 0 where either is zero."""
    # a row is scaled by its largest entry first, as squares of small slopes underflow
    a, b = (rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) for rows in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
