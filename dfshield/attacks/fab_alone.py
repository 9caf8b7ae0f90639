"""Targeted FAB (Croce and Hein 2020) by itself, as what it is: an attack that looks for the smallest perturbation."""

import torch
from torch import Tensor

from dfshield.attacks.autoattack import _PairwiseFAB
from dfshield.attacks.base import Problem, differentiable, frozen
from dfshield.attacks.nearest import Nearest
from dfshield.options.attacks_minimal import Fab

NORMS = {"linf": "Linf", "l2": "L2"}


def fab(problem: Problem, options: Fab) -> Tensor:
    """The nearest misclassified points (N,C,H,W) that were found, within ε or not; the image where there is none.

    `options.targets` likeliest wrong classes are aimed at one after the other, each by `options.steps` projections onto
    the linearised boundary between the two classes (Algorithm 1, targeted as in AutoAttack). The steps are
    pyautoattack's.

    Differs from the publication:

    - No random restarts and no final search along the line to the image, as in AutoAttack.
    """
    model, x, y, threat, _, _ = problem
    nearest = Nearest(x, threat.norm)
    logits = differentiable(model)
    attack = _PairwiseFAB(
        logits, norm=NORMS[threat.norm], n_iter=options.steps, eps=threat.eps, seed=0, device=x.device, verbose=False
    )
    with frozen(model), torch.no_grad():
        ranking = logits(x).scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        for target in ranking[:, :-1].T[: options.targets]:
            attack.target = target
            points = attack.attack_single_run(x, is_targeted=True)
            nearest.see(points, logits(points).argmax(dim=1) != y)
    return nearest.points
