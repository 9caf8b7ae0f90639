"""Square (Andriushchenko et al. 2020) by itself, with a budget of its own."""

from torch import Tensor

from dfshield.attacks import pyautoattack
from dfshield.attacks.base import Problem
from dfshield.attacks.budget import Budget
from dfshield.attacks.square import square as within_linf
from dfshield.options.attacks_blackbox import Square


def square(problem: Problem, options: Square) -> Tensor:
    """AutoAttack's untargeted Square with `options.queries` queries an image: perturbed images (N,C,H,W)."""
    model, x, y, threat, generator, _ = problem
    if threat.norm == "linf" and not options.reference:
        return within_linf(model, x, y, threat, options.queries, generator)
    side = pyautoattack.canvas(*x.shape[2:]) if threat.norm == "l2" else None
    return pyautoattack.Square(Budget(queries=options.queries), side)(problem, options)
