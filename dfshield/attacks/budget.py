"""How much effort AutoAttack and its pre-filter make: what the attacks take and the cost model counts (no torch)."""

from dataclasses import dataclass

from dfshield.options.attacks import AttackOptions, AutoAttack, Pgd
from dfshield.options.attacks_minimal import CarliniWagner, DeepFool, Fab

TARGETS = 9
"""Most target classes of AutoAttack's targeted attacks, by its definition."""
PREFILTER_STEPS = 10
"""Steps of the pre-filter, which is ours."""

CW_CANDIDATES = 10
"""Likeliest classes, an image's own among them, of which C&W aims at the nearest."""
CW_HALVINGS = 10
"""Bisections by which C&W draws its points back."""


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


def deepfool_passes(options: DeepFool, images: int, robust: float, classes: int) -> float:
    """Forward passes of DeepFool: a forward pass a step and a gradient for each rival; one more at the end."""
    rivals = min(options.candidates, classes) - 1
    return images * (options.steps * (1 + rivals) + 1) * options.eot


def cw_passes(options: CarliniWagner, images: int, robust: float, classes: int) -> float:
    """Forward passes of C&W: a gradient a step and one to judge the last point, for each constant; gradients of the
    candidates before and the bisections after."""
    search = GRADIENT * options.binary_steps * (options.steps + 1)
    return images * (min(CW_CANDIDATES, classes) + search + CW_HALVINGS) * options.eot


def fab_passes(options: Fab, images: int, robust: float, classes: int) -> float:
    """Forward passes of FAB: a gradient and a verdict a step, three more a target, one to rank the targets."""
    targets = min(options.targets, classes - 1)
    return images * (1 + targets * ((GRADIENT + 1) * options.steps + 3)) * options.eot


def autoattack_passes(options: AutoAttack, images: int, robust: float, classes: int) -> float:
    """Forward passes of AutoAttack; what does not survive (1 - `robust`) is taken to fall to the pre-filter."""
    budget, targets = Budget(), target_classes(options, classes)
    runs = GRADIENT * (1 + targets) + (GRADIENT + 1) * targets  # of APGD and FAB
    full = runs * budget.iterations + budget.queries
    return images * (GRADIENT * PREFILTER_STEPS + robust * full) * options.eot
