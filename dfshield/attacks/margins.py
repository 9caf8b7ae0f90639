"""Attacks on the margin z_y - max other: margin decomposition, and minimum margin over target classes."""

import math
from itertools import islice

import torch
from torch import Tensor

from dfshield.attacks.base import Problem, ascend, frozen, margin
from dfshield.core.lp import random_start
from dfshield.options.attacks_gradients import MarginDecomposition, MinimumMargin


def cosine(largest: float, steps: int) -> list[float]:
    """Step sizes that fall from `largest` towards 0 along half a cosine."""
    return [largest * (1 + math.cos(math.pi * index / steps)) / 2 for index in range(steps)]


def lower_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max other - z_y (N,): positive where an image is misclassified."""
    return -margin(logits, y)


def highest_other(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit but the label's (N,)."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def lower_label(logits: Tensor, y: Tensor) -> Tensor:
    """-z_y (N,)."""
    return -logits.gather(1, y[:, None])[:, 0]


def towards(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """z_t - z_y of the target classes t = `aim` (N,): shape (N,)."""
    return (logits.gather(1, aim[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def margin_decomposition(problem: Problem, options: MarginDecomposition) -> Tensor:
    """Margin decomposition (Ma et al. 2020, Algorithm 1): a stage of one term of the margin, then one of the margin.

    Where the two terms' gradients cancel, which masks the margin's, one alone leads out. Each stage anneals the step
    from 2ε along a cosine. Restarts take the terms in turn, on the images that those before did not break.
    """
    model, x, y, threat, generator, _ = problem
    first = options.steps // 2
    stages = cosine(2 * threat.eps, first), cosine(2 * threat.eps, options.steps - first)
    result, alive = x.clone(), torch.arange(len(x), device=x.device)
    with frozen(model):
        for restart in range(options.restarts):
            term = (lower_label, highest_other)[restart % 2]
            own, label = x[alive], y[alive]
            point = random_start(own, threat, generator)
            for sizes, objective in zip(stages, (term, lower_margin), strict=True):
                point = ascend(model, own, label, point, threat, options, sizes, objective)
            result[alive] = point
            alive = alive[~_fooled(model, point, label)]
            if not len(alive):
                break
    return result


def minimum_margin(problem: Problem, options: MinimumMargin) -> Tensor:
    """Minimum margin (Gao et al. 2022): ascent of z_t - z_y towards the likeliest wrong classes t, one after the other.

    Differs from the publication:

    - classes are ranked by the clean image's logits once, the largest first;
    - the step is annealed from 2ε along a cosine, with momentum 0.75, in place of APGD's step rule;
    - the loss has no constant, which changes no gradient.
    """
    model, x, y, threat, generator, _ = problem
    sizes = cosine(2 * threat.eps, options.steps)
    result, alive = x.clone(), torch.arange(len(x), device=x.device)
    with frozen(model):
        with torch.no_grad():
            logits = model(x).float()
        order = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
        for target in islice(order.T, options.targets):
            own, label = x[alive], y[alive]
            start = random_start(own, threat, generator)
            point = ascend(model, own, label, start, threat, options, sizes, towards, target[alive], momentum=0.75)
            result[alive] = point
            alive = alive[~_fooled(model, point, label)]
            if not len(alive):
                break
    return result


@torch.no_grad()
def _fooled(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    fooled: Tensor = model(x).argmax(dim=1) != y
    return fooled
