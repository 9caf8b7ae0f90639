"""How much effort AutoAttack and its pre-filter make: what the attacks take and the cost model counts (no torch)."""

from dataclasses import dataclass

from dfshield.options.attacks import AttackOptions, AutoAttack, Pgd

TARGETS = 9
"""Most target classes of AutoAttack's targeted attacks, by its definition."""
PREFILTER_STEPS = 10
"""Steps of the pre-filter, which is ours."""


@dataclass(frozen=True)
class Budget:
    """Effort of the components; the defaults are AutoAttack's."""

    iterations: int = 100
    """of each APGD run and each FAB run"""
    queries: int = 5000
    """of Square"""


RAND_DRAWS = 20
"""Passes that AutoAttack's variant for models that draw averages, by its definition."""

GRADIENT = 2
"""Forward pass and gradient of the pixels, in forward passes."""


def target_classes(options: AutoAttack, classes: int) -> int:
    """Target classes of a model of `classes`: as the definition has it, or all the others (``version: paper``)."""
    return classes - 1 if options.version == "paper" else min(TARGETS, classes - 1)


def draws(options: AutoAttack) -> int:
    """Passes that the crafting model's logits are averaged over: `eot`, or 20 where ``version: rand`` has none."""
    return RAND_DRAWS if options.version == "rand" and options.eot == 1 else options.eot


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
    if options.version == "rand":
        full = 2 * GRADIENT * (budget.iterations + 1)
    return images * (GRADIENT * PREFILTER_STEPS + robust * full) * draws(options)
