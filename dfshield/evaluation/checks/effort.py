"""Checks of the effort of an attack: more of it must change nothing, and without bound it must break everything."""

from dfshield.core.threat import MAX_EPS
from dfshield.evaluation.checks.base import Case, Finding, absent, allowed, gained

POINTS = 1.0
"""Percentage points that more effort may change."""
FACTORS = (0.5, 1.0, 2.0, 4.0)
"""Points of the ε curve, in units of ε, before the unbounded one."""


def steps(case: Case) -> Finding:
    """Twice the steps of PGD from the same start break at most `POINTS` more (Carlini et al. 2019)."""
    count = 2 * case.options.steps
    return gained(case, case.pgd(count), case.direct, POINTS, f"PGD with {count} steps in place of {count // 2}")


def restarts(case: Case) -> Finding:
    """A second random start of PGD breaks at most `POINTS` more (Carlini et al. 2019)."""
    return gained(case, case.pgd(case.options.steps, start=1), case.direct, POINTS, "a second random start of PGD")


def eps_curve(case: Case) -> Finding:
    """Robust accuracy under PGD falls as ε grows, and to 0 % where every image is allowed (Athalye et al. 2018).

    The figure is the accuracy left at the largest ε, or the largest rise between two ε if that is more; it may be
    `POINTS`.
    """
    norm, eps = case.threat
    if eps == 0:
        return absent("ε is 0")
    sizes = [*(factor * eps for factor in FACTORS if factor * eps < MAX_EPS[norm]), MAX_EPS[norm]]
    left = [int(case.pgd(case.options.steps, case.threat._replace(eps=size)).sum()) for size in sizes]
    rise = max([0, *(after - before for before, after in zip(left, left[1:], strict=False))])
    worst = max(left[-1], rise)
    curve = ", ".join(f"{size:.3g}: {case.share(count):.1f}" for size, count in zip(sizes, left, strict=True))
    verdict = "failed" if worst > allowed(POINTS, case.n) else "passed"
    return Finding(verdict, case.share(worst), POINTS, f"robust accuracy in % by ε: {curve}")
