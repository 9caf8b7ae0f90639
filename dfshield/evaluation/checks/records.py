"""Checks that read what is already known of a model: its ledgers and the metrics of its training."""

import math
from statistics import fmean

import numpy as np

from dfshield.attacks.base import frozen
from dfshield.evaluation.checks.case import Case, Finding, Verdict, absent, allowed
from dfshield.evaluation.masking import gradient_masking_checks

WORST_POINTS = 0.5
"""Percentage points of images that other attacks may break of those that AutoAttack leaves."""
EPOCH_PARTS = 5
"""Means are over one part of so many of the training's epochs."""
EPOCH_POINTS = 5.0
"""Percentage points that the last epochs may be less robust than the best ones."""
SIGNS = ("randomised", "softmax-outputs", "zero-gradients", "square-broke-after-white-box")
"""Flags of ledgers that are AutoAttack's own (Croce and Hein 2020)."""


def worst_case(case: Case) -> Finding:
    """All other ledgers together break at most `WORST_POINTS` of what AutoAttack left, image by image.

    Ledgers of different numbers of images are compared on the first ones, which they have in common.
    """
    strongest = [ledger for ledger in case.ledgers if ledger.options.get("attack") == "autoattack"]
    others = [ledger for ledger in case.ledgers if ledger.options.get("attack") not in ("autoattack", "clean")]
    if not strongest or not others:
        return absent("needs a ledger of AutoAttack and one of another attack")
    reference = strongest[0].broken
    n = min(ledger.n for ledger in (strongest[0], *others))
    gained = ~reference[:n] & np.any([ledger.broken[:n] for ledger in others], axis=0)
    count, left = int(gained.sum()), 100 * float(np.mean(~reference[:n]))
    text = (
        f"AutoAttack leaves {left:.2f} %, all {1 + len(others)} ledgers together {left - 100 * count / n:.2f} % of {n} "
        "images; limit in points"
    )
    verdict: Verdict = "failed" if count > allowed(WORST_POINTS, n) else "passed"
    return Finding(verdict, 100 * count / n, WORST_POINTS, text)


def autoattack_flags(case: Case) -> Finding:
    """No flag of masked gradients: by the ledgers, and by the checks' own look at outputs and gradients."""
    with frozen(case.model), frozen(case.victim):
        seen = set(gradient_masking_checks(case.model, case.victim, case.x, case.y))
    seen |= {flag for ledger in case.ledgers for flag in ledger.flags}
    found = [flag for flag in SIGNS if flag in seen]
    return Finding("failed" if found else "passed", float(len(found)), 0.0, ", ".join(found) or "no flags")


def last_epoch(case: Case) -> Finding:
    """On held-out synthetic images the last epochs are at most `EPOCH_POINTS` less robust than the best ones.

    Robust agreement is with the teacher's class under the training's own attack (Rice et al. 2020: robust overfitting).
    It is compared between means over a fifth of all epochs: the best of many single epochs is the luckiest one.
    """
    values = [row.get("robust_agreement", math.nan) for row in case.history]
    if not values or not all(map(math.isfinite, values)):
        return absent("no held-out robustness of the training is known")
    width = max(1, len(values) // EPOCH_PARTS)
    means = [fmean(values[end - width : end]) for end in range(width, len(values) + 1)]
    best = max(range(len(means)), key=lambda first: means[first])
    lost = means[best] - means[-1]
    text = (
        f"mean held-out robust agreement {means[-1]:.1f} % in epochs {len(means)} to {len(values)}, "
        f"{means[best]:.1f} % in epochs {best + 1} to {best + width}"
    )
    verdict: Verdict = "failed" if lost > EPOCH_POINTS else "passed"
    return Finding(verdict, lost, EPOCH_POINTS, text)
