"""Checks that an attack with less knowledge or effort is no stronger than one with more."""

import torch
from torch import Tensor

from dfshield.attacks import square_alone
from dfshield.attacks.base import Problem, input_gradient, margin
from dfshield.core.lp import step
from dfshield.core.rng import generator
from dfshield.evaluation.checks.case import Case, Finding, absent, gained
from dfshield.evaluation.masking import SQUARE_POINTS
from dfshield.options.attacks_blackbox import Square

POINTS = 1.0
"""Percentage points of images that the weaker attack may break of those that the stronger one leaves."""


def single_step(case: Case) -> Finding:
    """FGSM breaks at most `POINTS` of what PGD leaves (Athalye et al. 2018)."""
    norm, eps = case.threat

    def fgsm(x: Tensor, y: Tensor) -> Tensor:
        return step(x, input_gradient(case.victim, x, y)[1], eps, norm)

    return gained(case, case.survivors(fgsm, case.direct), POINTS, "FGSM")


def black_box(case: Case) -> Finding:
    """Square breaks hardly an image that white-box attacks leave.

    Those are PGD on the cross entropy and on the margin. The limit is that of AutoAttack's flag (Croce and Hein 2020):
    0.2 points, and more than one image.
    """
    if case.threat.eps == 0:
        return absent("ε is 0")
    white_box = case.pgd(case.options.steps, alive=case.direct, objective=lambda logits, y: -margin(logits, y))
    name = f"Square with {case.options.queries} queries"
    return gained(case, square(case, white_box), 100 * SQUARE_POINTS, name, white_box)


def square(case: Case, alive: Tensor) -> Tensor:
    """Which of the images `alive` (N,) bool survive Square (Andriushchenko et al. 2020): (N,) bool."""
    random, options = generator("checks", case.options.seed, "square"), Square(queries=case.options.queries)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return square_alone.square(Problem(case.model, x, y, case.threat, random), options)

    return case.survivors(attack, alive)


def transfer(case: Case) -> Finding:
    """PGD on the surrogate breaks at most `POINTS` of what PGD on the model itself leaves (Athalye et al. 2018)."""
    if case.surrogate is None:
        return absent("no other model was given")
    found = case.pgd(case.options.steps, model=case.surrogate, alive=case.direct)
    return gained(case, found, POINTS, "PGD on the other model")


def noise(case: Case) -> Finding:
    """Random noise of size ε, the worst of some draws, breaks at most `POINTS` of what PGD leaves.

    l∞: every pixel moves by ε up or down; l2: the perturbation has length ε.
    """
    random = generator("checks", "noise", case.options.seed)
    left = case.direct
    for _ in range(case.options.draws):
        left = case.survivors(lambda x, y: step(x, _normal(x, random), case.threat.eps, case.threat.norm), left)
    return gained(case, left, POINTS, f"noise, the worst of {case.options.draws} draws,")


def _normal(x: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=random).to(x)
