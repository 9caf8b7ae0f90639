"""Figures of the smallest perturbations that a ledger holds. No PyTorch.

Distances (N,) are those of all images: 0 for images that are wrong without attack, infinite where no misclassified
point was found.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np


def median(distances: np.ndarray) -> float:
    """The median of distances (N,), N > 0: the ε at which half of all images are misclassified."""
    ordered = np.sort(distances).astype(float)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def largest(distances: np.ndarray) -> float:
    """The largest of distances (N,), N > 0: the ε at which nothing survives."""
    return float(distances.max())


def median_interval(distances: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the median by order statistics: the l-th smallest and the l-th largest of distances (N,).

    l is the largest rank with P(B < l) ≤ 2.5 % for B binomial with N draws of one half, so the interval assumes nothing
    of the distribution and covers the median in at least 95 % (David and Nagaraja 2003, section 7.1). Fewer than six
    images give (0, ∞).
    """
    n, rank = len(distances), 0
    term = below = 1  # N over rank, and the sum of such terms up to rank, in units of 2^-N
    while 40 * below <= 2**n:
        rank += 1
        term = term * (n - rank + 1) // rank
        below += term
    if rank == 0:
        return 0.0, math.inf
    ordered = np.sort(distances)
    return float(ordered[rank - 1]), float(ordered[n - rank])


def no_interval(distances: np.ndarray) -> tuple[float, float]:
    """None (NaN), as the largest of a sample bounds its population's by nothing."""
    return math.nan, math.nan


STATISTICS: Mapping[str, tuple[Callable[[np.ndarray], float], Callable[[np.ndarray], tuple[float, float]]]] = {
    "median": (median, median_interval),
    "largest": (largest, no_interval),
}
"""Figure and 95 % interval by the name of a metric's statistic."""
