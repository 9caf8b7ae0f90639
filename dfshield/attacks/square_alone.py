"""Square (Andriushchenko et al. 2020) by itself, with a budget of its own."""

from torch import Tensor

from dfshield.attacks.autoattack import _canvas, _Square
from dfshield.attacks.base import Problem
from dfshield.options.attacks_blackbox import Square


def square(problem: Problem, options: Square) -> Tensor:
    """AutoAttack's untargeted Square with `options.queries` queries an image: perturbed images (N,C,H,W)."""
    side = _canvas(*problem.x.shape[2:]) if problem.threat.norm == "l2" else None
    return _Square(side, options.queries)(problem, options)
