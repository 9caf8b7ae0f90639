"""Targeted FAB (Croce and Hein 2020) by itself, as what it is: an attack that looks for the smallest perturbation."""

import torch
from torch import Tensor

from dfshield.attacks.apgd import bound, targeted_margin
from dfshield.attacks.base import Problem, differentiable, frozen, input_gradient, margin
from dfshield.attacks.fab import BACK, fab_step
from dfshield.attacks.nearest import Nearest
from dfshield.options.attacks_minimal import Fab


def fab(problem: Problem, options: Fab) -> Tensor:
    """The nearest misclassified points (N,C,H,W) that were found, within ε or not; the image where there is none.

    `options.targets` likeliest wrong classes are aimed at one after the other, each by `options.steps` projections onto
    the linearised boundary between the two classes (Algorithm 1, targeted as in AutoAttack).

    Differs from the publication:

    - No random restarts and no final search along the line to the image, as in AutoAttack.
    """
    model, x, y, threat, _, _ = problem
    nearest = Nearest(x, threat.norm)
    logits = differentiable(model)
    with frozen(model), torch.no_grad():
        ranking = logits(x).scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        for target in ranking[:, :-1].T[: options.targets]:
            at = x
            for _ in range(options.steps):
                values, gradient = input_gradient(model, at, y, bound(targeted_margin, target))
                at = fab_step(x, at, targeted_margin(values, y, target), gradient, threat.norm)
                over = margin(logits(at), y) < 0
                nearest.see(at, over)
                at = torch.where(over.view(-1, 1, 1, 1), x + BACK * (at - x), at)
    return nearest.points
