"""How much effort AutoAttack and its pre-filter make: what the attacks take and the cost model counts (no torch)."""

from dataclasses import dataclass

from dfshield.options.attacks import AttackOptions, AutoAttack, Pgd
from dfshield.options.attacks_gradients import Latent, MarginDecomposition, MiFgsm, MinimumMargin, Tpgd

TARGETS = 9
"""Most target classes of AutoAttack's targeted attacks, by its definition."""
HALVINGS = 10
"""Trials of a line search of L-BFGS; each halves the step."""
PREFILTER_STEPS = 10
"""Steps of the pre-filter, which is ours."""


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


def steps_passes(options: MiFgsm | Tpgd, images: int, robust: float, classes: int) -> float:
    """Forward passes of an ascent without restarts: a gradient an image and step."""
    return GRADIENT * images * options.steps * options.eot


def modified_passes(options: Tpgd, images: int, robust: float, classes: int) -> float:
    """Forward passes of PGD away from outputs: of the clean image by one or two models, then the ascent."""
    return 2 * images * options.eot + steps_passes(options, images, robust, classes)


def latent_passes(options: Latent, images: int, robust: float, classes: int) -> float:
    """Forward passes of the latent attack at most: a gradient and a whole line search an image and iteration."""
    iteration = GRADIENT + HALVINGS
    return images * (1 + GRADIENT + options.iterations * iteration) * options.eot


def md_passes(options: MarginDecomposition, images: int, robust: float, classes: int) -> float:
    """Forward passes of margin decomposition: a gradient an image, step and restart, and one to see what fell."""
    return images * options.restarts * (GRADIENT * options.steps + 1) * options.eot


def mm_passes(options: MinimumMargin, images: int, robust: float, classes: int) -> float:
    """Forward passes of minimum margin: a gradient an image, step and target, and one to see what fell."""
    targets = min(options.targets, classes - 1)
    return images * (1 + targets * (GRADIENT * options.steps + 1)) * options.eot


def autoattack_passes(options: AutoAttack, images: int, robust: float, classes: int) -> float:
    """Forward passes of AutoAttack; what does not survive (1 - `robust`) is taken to fall to the pre-filter."""
    budget, targets = Budget(), target_classes(options, classes)
    runs = GRADIENT * (1 + targets) + (GRADIENT + 1) * targets  # of APGD and FAB
    full = runs * budget.iterations + budget.queries
    return images * (GRADIENT * PREFILTER_STEPS + robust * full) * options.eot
