"""PGD (Madry et al. 2018), and the short one that comes before AutoAttack."""

import torch
from torch import Tensor

from dfshield.attacks.base import Problem, ascend, frozen, margin
from dfshield.attacks.budget import PREFILTER_STEPS
from dfshield.core.lp import random_start, step_size
from dfshield.options.attacks import AttackOptions, Pgd


def pgd(problem: Problem, options: Pgd) -> Tensor:
    """Projected gradient ascent on the cross entropy from uniform random starts (Madry et al. 2018, Eq 2).

    `options.steps` steps of ε/4 (linf) or `options.l2_step` (l2); the last point of a run counts, or the first one that
    is clearly misclassified (see `ascend`). Each of `options.restarts` runs has only the images that the runs before it
    did not break.
    """
    model, x, y, threat, generator, _ = problem
    sizes = [step_size(threat, options.l2_step)] * options.steps
    result = x.clone()
    alive = torch.arange(len(x), device=x.device)
    with frozen(model):
        for left in reversed(range(options.restarts)):
            start = random_start(x[alive], threat, generator)
            found = ascend(model, x[alive], y[alive], start, threat, options, sizes)
            result[alive] = found
            if left:
                with torch.no_grad():
                    alive = alive[model(found).argmax(dim=1) == y[alive]]
            if not len(alive):
                break
    return result


def pgd_prefilter(problem: Problem, options: AttackOptions) -> Tensor:
    """A few steps of ε/4 down the margin: breaks cheaply what a strong attack would break at length."""
    model, x, y, threat, generator, _ = problem
    sizes = [threat.eps / 4] * PREFILTER_STEPS
    with frozen(model):
        start = random_start(x, threat, generator)
        return ascend(model, x, y, start, threat, options, sizes, lambda logits, y: -margin(logits, y))
