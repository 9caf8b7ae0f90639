"""Checks of the effort of an attack: more of it must change nothing, and without bound it must break everything."""

import itertools

from dfshield.core.threat import MAX_EPS
from dfshield.evaluation.checks.case import Case, Finding, Verdict, absent, allowed, gained
from dfshield.options.checks import FACTORS

EFFORT_POINTS = 2.0
"""Percentage points that twice the effort may change. Of 131 small networks 19 change by 2 or more, 4 by more."""
POINTS = 1.0
"""Percentage points that may stand at any ε, or be gained as it grows."""


def steps(case: Case) -> Finding:
    """Twice the steps of PGD from the same start break at most `EFFORT_POINTS` more (Carlini et al. 2019)."""
    count = 2 * case.options.steps
    return gained(case, case.pgd(count, alive=case.direct), EFFORT_POINTS, f"PGD with {count} steps")


def restarts(case: Case) -> Finding:
    """As many random starts of PGD again break at most `EFFORT_POINTS` more (Carlini et al. 2019)."""
    count = case.options.restarts
    found = case.pgd(case.options.steps, starts=range(count, 2 * count), alive=case.direct)
    return gained(case, found, EFFORT_POINTS, f"PGD from {count} further random starts")


def eps_curve(case: Case) -> Finding:
    """Robust accuracy under PGD falls as ε grows, and to 0 % where every image is allowed (Athalye et al. 2018).

    The figure is the accuracy left at the largest ε, or the largest rise between two ε if that is more; it may be
    `POINTS`. Each is of one random start.
    """
    norm, eps = case.threat
    if eps == 0:
        return absent("ε is 0")
    sizes = [*(factor * eps for factor in FACTORS if factor * eps < MAX_EPS[norm]), MAX_EPS[norm]]
    left = [int(case.pgd(case.options.steps, case.threat._replace(eps=size), starts=[0]).sum()) for size in sizes]
    rise = max([0, *(after - before for before, after in itertools.pairwise(left))])
    worst = max(left[-1], rise)
    curve = ", ".join(f"{size:.3g}: {case.share(count):.1f}" for size, count in zip(sizes, left, strict=True))
    verdict: Verdict = "failed" if worst > allowed(POINTS, case.n) else "passed"
    return Finding(verdict, case.share(worst), POINTS, f"robust accuracy in % by ε: {curve}")
