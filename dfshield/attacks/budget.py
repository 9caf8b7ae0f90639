"""How much effort attacks make: what they take and the cost model counts (no torch)."""

import math
from dataclasses import dataclass

from dfshield.options.attacks import AttackOptions, AutoAttack, Pgd
from dfshield.options.attacks_blackbox import Boundary, GenAttack, HopSkipJump, Spsa, Square

TARGETS = 9
"""Most target classes of AutoAttack's targeted attacks, by its definition."""
PREFILTER_STEPS = 10
"""Steps of the pre-filter, which is ours."""
SQUARE_EXTRA = 3
"""Passes of Square beside its queries: the clean image, the start and the result."""
STARTS = 100
"""Random images among which an attack on labels looks for a misclassified one."""
HALVINGS = 24
"""Most halvings of a search for the decision boundary, and of a step of HopSkipJump: float32 resolves no more."""
BLENDS = 10
"""Halvings between the image and the start of the Boundary attack."""


@dataclass(frozen=True)
class Budget:
    """Effort of the components; the defaults are AutoAttack's."""

    iterations: int = 100
    """of each APGD run and each FAB run"""
    queries: int = 5000
    """of Square"""


GRADIENT = 2
"""Forward pass and gradient of the pixels, in forward passes."""


def target_classes(options: AutoAttack, classes: int) -> int:
    """Target classes of a model of `classes`: as the definition has it, or all the others (``version: paper``)."""
    return classes - 1 if options.version == "paper" else min(TARGETS, classes - 1)


def clean_passes(options: AttackOptions, images: int, robust: float, classes: int) -> float:
    """Forward passes of the evaluation alone."""
    return images


def fgsm_passes(options: AttackOptions, images: int, robust: float, classes: int) -> float:
    """Forward passes of FGSM: one gradient an image."""
    return GRADIENT * images * options.eot


def pgd_passes(options: Pgd, images: int, robust: float, classes: int) -> float:
    """Forward passes of PGD: a gradient an image, step and restart."""
    return GRADIENT * images * options.steps * options.restarts * options.eot


def autoattack_passes(options: AutoAttack, images: int, robust: float, classes: int) -> float:
    """Forward passes of AutoAttack; what does not survive (1 - `robust`) is taken to fall to the pre-filter."""
    budget, targets = Budget(), target_classes(options, classes)
    runs = GRADIENT * (1 + targets) + (GRADIENT + 1) * targets  # of APGD and FAB
    full = runs * budget.iterations + budget.queries
    return images * (GRADIENT * PREFILTER_STEPS + robust * full) * options.eot


def square_passes(options: Square, images: int, robust: float, classes: int) -> float:
    """Most forward passes of Square: as if every image took all queries."""
    return images * (options.queries + SQUARE_EXTRA) * options.eot


def spsa_passes(options: Spsa, images: int, robust: float, classes: int) -> float:
    """Most forward passes of SPSA: the samples and the new point of every iteration."""
    return images * options.iterations * (options.samples + 1) * options.eot


def genattack_passes(options: GenAttack, images: int, robust: float, classes: int) -> float:
    """Most forward passes of GenAttack: its queries, and at least the image and the first population."""
    return images * max(options.queries, 1 + options.population) * options.eot


def boundary_passes(options: Boundary, images: int, robust: float, classes: int) -> float:
    """Most forward passes of the Boundary attack: the image, the starts, two queries a step."""
    return images * (1 + STARTS + BLENDS + 2 * options.steps) * options.eot


def hopskipjump_draws(options: HopSkipJump, iteration: int) -> int:
    """Queries of the estimate of the gradient's direction in `iteration` (from 1)."""
    return min(int(options.init_evaluations * math.sqrt(iteration)), options.max_evaluations)


def hopskipjump_passes(options: HopSkipJump, images: int, robust: float, classes: int) -> float:
    """Most forward passes of HopSkipJump: the image, the starts; every iteration's estimate, step and search."""
    draws = sum(hopskipjump_draws(options, iteration) for iteration in range(1, options.steps + 1))
    searches = (2 * options.steps + 1) * HALVINGS
    return images * (1 + STARTS + searches + draws) * options.eot
