"""Attacks for tests of what attacks are given; `SEEN` keeps the problems that they got."""

from torch import Tensor

from dfshield.attacks.base import Problem
from dfshield.attacks.fgsm import fgsm
from dfshield.options import AttackOptions

SEEN: list[Problem] = []


def imitate(problem: Problem, options: AttackOptions) -> Tensor:
    """Towards the guide of each image, as far as it goes."""
    SEEN.append(problem)
    guide: Tensor = problem.others["guide"]
    return guide


def transfer(problem: Problem, options: AttackOptions) -> Tensor:
    """FGSM on the surrogate."""
    SEEN.append(problem)
    return fgsm(problem._replace(model=problem.others["surrogate"]), options)
