"""A transferred attack: crafted on one model, judged on another (Papernot et al. 2017)."""

from torch import Tensor

from dfshield.attacks.base import Problem
from dfshield.attacks.pgd import pgd
from dfshield.options.attacks import Pgd
from dfshield.options.attacks_gradients import Transfer


def transfer(problem: Problem, options: Transfer) -> Tensor:
    """PGD on the surrogate ``problem.others["surrogate"]``; the attacked model is not asked.

    Every image takes every step, because a perturbation that the surrogate misclassifies by far transfers best.
    """
    own = Pgd(**options.model_dump(exclude={"attack"}) | {"reference": True})
    return pgd(problem._replace(model=problem.others["surrogate"]), own)
