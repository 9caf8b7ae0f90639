"""The attack's own exam: tasks that are known to have a solution (Zimmermann et al. 2022)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dfshield.attacks.base import ascend
from dfshield.core.errors import InputError
from dfshield.core.lp import project, random_start, step
from dfshield.core.rng import generator, seeded
from dfshield.core.threat import Threat
from dfshield.evaluation.checks.case import Case, Finding, absent, allowed
from dfshield.models.penultimate import Penultimate
from dfshield.options.attacks import AttackOptions

SUCCESS = 95.0
"""Percent of the tasks that the attack has to solve."""
INNER = 0.5
"""Size of the ball of the inner points, in units of ε."""
CLOSE = 0.9
"""Where the threshold lies between the largest readout of an inner point (0) and that of the boundary point (1)."""
RIDGE = 0.3
"""Part of the mean variance that is added to the features' covariance."""
LEAST = 4
"""Tasks of which the success is told at least."""

Features = Callable[[Tensor], Tensor]


def binarisation(case: Case) -> Finding:
    """The binarisation test (Zimmermann et al. 2022): PGD must find a class that is known to lie within ε.

    For each image a readout of the frozen penultimate features tells points of a smaller ball around it from one
    boundary point at distance ε. PGD on this binary model must reach the boundary's class for at least `SUCCESS` % of
    the tasks that random search with as many passes does not solve, or for all but one.

    Differs from the publication:

    - The readout is Fisher's linear discriminant in closed form, not logistic regression: no training to tune.
    - The threshold lies at `CLOSE` of the way from the inner points to the boundary point, not at 0.999 of it.
    - A network without a linear layer is read at its logits.
    """
    rows = case.right.nonzero()[: case.options.binarised, 0]
    if not len(rows) or case.threat.eps == 0:
        return absent("no image to make a task of, or ε is 0")
    features, done = _features(case)
    found = guessed = made = 0
    try:
        for number, row in enumerate(rows.tolist()):
            random = generator("checks", "binarisation", case.options.seed, number)
            with seeded(case.options.seed, case.x.device):
                task = readout(features, case.x[row : row + 1], case.threat, case.options.inner, random)
                if task is None:
                    continue
                made += 1
                if _by_chance(case, task, row, random):
                    guessed += 1
                else:
                    found += int(_by_pgd(case, task, row, random))
    finally:
        done()
    rest = made - guessed
    if rest < LEAST:
        return absent(f"of {len(rows)} tasks {len(rows) - made} are not separable, random search solves {guessed}")
    success = 100 * found / rest
    text = f"PGD solves {found} of {rest} tasks, random search {guessed} of {made}; limit is the least in %"
    missed = rest - found > allowed(100 - SUCCESS, rest)
    return Finding("failed" if missed else "passed", success, SUCCESS, text)


class Readout(nn.Module):
    """Two logits (N,2) of images (N,C,H,W): the second is larger beyond the threshold."""

    def __init__(self, features: Features, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.features, self.weight, self.threshold = features, weight, threshold

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,2)."""
        score = self.features(x).double() @ self.weight - self.threshold
        return torch.stack((-score, score), dim=1).float()


def readout(features: Features, x: Tensor, threat: Threat, inner: int, random: torch.Generator) -> Readout | None:
    """A binary model that tells `inner` points near the image `x` (1,C,H,W) from one at distance ε.

    None where Fisher's discriminant does not separate them. The scores of the
    largest inner point and of the boundary point differ by 1, so that losses of them do not saturate.
    """
    near = random_start(x.expand(inner, *x.shape[1:]), threat._replace(eps=INNER * threat.eps), random)
    border = _border(x, threat, random)
    with torch.no_grad():
        own, other = features(near).double(), features(border).double()[0]
    mean = own.mean(dim=0)
    spread = (own - mean).T @ (own - mean) / inner
    ridge = RIDGE * spread.diagonal().mean() + torch.finfo(torch.float32).tiny
    weight = torch.linalg.solve(spread + ridge * torch.eye(len(mean)).to(spread), other - mean)
    low, high = float((own @ weight).max()), float(other @ weight)
    return Readout(features, weight / (high - low), low / (high - low) + CLOSE) if high > low else None


def _border(x: Tensor, threat: Threat, random: torch.Generator, n: int = 1) -> Tensor:
    """Points (n,C,H,W) at distance ε of the image `x` (1,C,H,W), as far as [0,1] allows."""
    drawn = torch.randn((n, *x.shape[1:]), generator=random).to(x)
    return project(x, step(x, drawn, threat.eps, threat.norm), threat)


@torch.no_grad()
def _by_chance(case: Case, task: Readout, row: int, random: torch.Generator) -> bool:
    """Whether one of as many points at distance ε as PGD makes passes is of the boundary's class."""
    points = _border(case.x[row : row + 1], case.threat, random, 3 * case.options.steps * case.options.restarts)
    return bool((task(points).argmax(dim=1) == 1).any())


def _by_pgd(case: Case, task: Readout, row: int, random: torch.Generator) -> bool:
    """Whether the checks' PGD reaches the boundary's class."""
    own, steps = torch.zeros(case.options.restarts, dtype=torch.long, device=case.x.device), case.options.steps
    x = case.x[row : row + 1].expand(len(own), *case.x.shape[1:])
    start = random_start(x, case.threat, random)
    sizes = [case.threat.eps / 4] * steps
    x_adv = ascend(task, x, own, start, case.threat, AttackOptions(), sizes)
    with torch.no_grad():
        return bool((task(x_adv).argmax(dim=1) == 1).any())


def _features(case: Case) -> tuple[Features, Callable[[], None]]:
    """What readouts read, images (N,C,H,W) to (N,D), and what ends the watching."""
    try:
        watched = Penultimate(case.victim)
    except InputError:
        return case.victim, lambda: None

    def read(x: Tensor) -> Tensor:
        logits = case.victim(x)
        try:
            seen = watched.features
        except InputError:
            return logits
        return seen if len(seen) == len(x) else logits

    return read, watched.remove
