"""FGSM (Goodfellow et al. 2015)."""

from torch import Tensor

from dfshield.attacks.base import Problem, frozen, input_gradient
from dfshield.core.lp import project, step
from dfshield.options import AttackOptions


def fgsm(problem: Problem, options: AttackOptions) -> Tensor:
    """One step of length ε from the image itself (Goodfellow et al. 2015); for l2 along the unit gradient."""
    model, x, y, threat = problem[:4]
    with frozen(model):
        return project(x, step(x, input_gradient(model, x, y)[1], threat.eps, threat.norm), threat)
