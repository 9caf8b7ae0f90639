"""Checks that an attack with less knowledge or effort is no stronger than one with more."""

import torch
import torch.nn.functional as F
from pyautoattack.square import SquareAttack
from torch import Tensor

from dfshield.attacks.autoattack import CachedLogits
from dfshield.attacks.base import differentiable, input_gradient, margin
from dfshield.core.lp import step
from dfshield.core.rng import generator
from dfshield.evaluation.checks.case import Case, Finding, absent, gained
from dfshield.evaluation.masking import SQUARE_POINTS

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
    """Which of the images `alive` (N,) bool survive Square (Andriushchenko et al. 2020), pyautoattack's (N,) bool."""
    height, width = case.x.shape[2:]
    side = _canvas(max(height, width, 5)) if case.threat.norm == "l2" else 0

    def attack(x: Tensor, y: Tensor) -> Tensor:
        logits = differentiable(case.model)
        known = CachedLogits(logits) if x.device.type == "cpu" and not side else logits
        run = SquareAttack(
            (lambda image: logits(image[..., :height, :width])) if side else known,
            norm={"linf": "Linf", "l2": "L2"}[case.threat.norm],
            eps=case.threat.eps,
            n_queries=case.options.queries,
            seed=case.options.seed,
            device=x.device,
            verbose=False,
        )
        given = F.pad(x, (0, side - width, 0, side - height)) if side else x
        with torch.no_grad():
            found: Tensor = run.perturb(given.clone(), y.clone())
        return found[..., :height, :width]

    return case.survivors(attack, alive)


def _canvas(side: int) -> int:
    """The smallest side from `side` on of a square image on which the l2 windows of Square fit."""
    while side // 5 > 1 and (side - 5 * (side // 5)) // 2 + side // (side // 5) * (side // 5) > side:
        side += 1
    return side


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
