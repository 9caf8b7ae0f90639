"""How much effort AutoAttack and its pre-filter make: what the attacks take and the cost model counts (no torch)."""

from dataclasses import dataclass

from dfshield.options import AttackOptions

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


def target_classes(options: AttackOptions, classes: int) -> int:
    """Target classes of a model of `classes`: as the definition has it, or all the others (``targets: paper``)."""
    return classes - 1 if options.targets == "paper" else min(TARGETS, classes - 1)
