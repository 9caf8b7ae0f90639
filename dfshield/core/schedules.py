"""Schedules: factors for the learning rate and ε per epoch, and the number of inner PGD steps."""

import math
from collections.abc import Callable


def warmed(share: float, epoch: int, epochs: int) -> float:
    """Factor in (0,1] that grows linearly over the first `share` of the `epochs`, in epoch `epoch` (from 0)."""
    return min(1.0, (epoch + 1) / (share * epochs)) if share else 1.0


def half_cosine(step: int, steps: int) -> float:
    """Factor in (0,1] that falls from 1 towards 0 in `steps` along half a cosine, in `step` (from 0)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


INNER_STEPS: dict[str, Callable[[int, int, int], int]] = {
    "single-step": lambda steps, epoch, epochs: 1,
    "n-fgsm": lambda steps, epoch, epochs: 1,
    "curriculum": lambda steps, epoch, epochs: -(-(epoch + 1) * steps // epochs),
}
"""Searches whose number of steps depends on more than `attack_steps`: ``(steps, epoch, epochs) -> steps``."""


def inner_steps(search: str, steps: int, epoch: int, epochs: int) -> int:
    """Gradient steps of the inner maximisation in epoch `epoch` (from 0): `steps`, unless `search` has a schedule."""
    return INNER_STEPS[search](steps, epoch, epochs) if search in INNER_STEPS else steps
