"""A³, the adaptive auto attack (Liu et al. 2022).

Differs from the publication:

- A chunk of images is what a whole data set is there: hard images are discarded and statistics kept within a chunk.
- Fewer than its 100 images are kept whatever the share (option `least`), so that small chunks are cheap.
- A round has its own number of steps, which is not cut to keep an average over all rounds.
- The wrong class of a warm start is chosen by the logits of the image itself, not of an image with noise.
- With fewer than ten classes the weights of a warm start are those of ten.
"""

import math

import torch
from torch import Tensor

from dfshield.attacks.base import Problem, frozen, input_gradient, margin
from dfshield.attacks.budget import DISCARDING, WARM, Round, kept
from dfshield.attacks.climb import climb
from dfshield.core.lp import random_start
from dfshield.options.attacks_adaptive import A3

ENOUGH = 0.05
"""Share of the second round's images that must fall during warm starts for these to be preferred."""
LATE = 10
"""Round from which on warm starts lead to the likeliest wrong classes alone."""
FAVOURITES = 4
"""Number of these classes."""
TARGETS = {10: 9, 100: 14}
"""Likeliest wrong classes that warm starts lead to, by the number of classes up to which that holds; above, 20."""
PUSH = 0.8
"""Weight of the logit that a warm start leads to, or away from."""


def a3(problem: Problem, options: A3) -> Tensor:
    """Adaptive warm starts (ADI), and statistics-based discarding (OSD) of images that are far from falling.

    Each of `options.rounds` rounds attacks the survivors that are nearest to the boundary, from a uniform random start
    and a fresh direction each time. See `_direction` and `_sizes` for a single climb, `DISCARDING` and `WARM` in
    `dfshield.attacks.budget` for the rounds. Returns the points (N,C,H,W) of the largest margin loss that were seen.
    """
    with frozen(problem.model):
        run = _Run(problem, options)
        for number in range(options.rounds):
            plan = (WARM if run.warm_starts_suffice() else DISCARDING)[number]
            for _ in range(min(plan.restarts, options.restarts)):
                rows = run.nearest(plan.share)
                if not len(rows):
                    return run.best
                run.attack(rows, number, plan)
        return run.best


class _Run:
    """What is known of a chunk's images so far."""

    def __init__(self, problem: Problem, options: A3) -> None:
        self.problem, self.options = problem, options
        with torch.no_grad():
            logits = problem.model(problem.x).float()
        own = torch.nn.functional.one_hot(problem.y, logits.shape[1]).bool()
        self.ranking = logits.masked_fill(own, -torch.inf).argsort(dim=1, descending=True)[:, :-1]
        self.best, self.gap = problem.x.clone(), -margin(logits, problem.y)
        self.alive = torch.ones_like(problem.y, dtype=torch.bool)
        self.climbs = self.warm_falls = self.second = 0
        self.toward_own = self.toward_wrong = 0.0

    def warm_starts_suffice(self) -> bool:
        """Whether warm starts alone break much."""
        return self.warm_falls >= ENOUGH * self.second > 0

    def nearest(self, share: float) -> Tensor:
        """The share of the survivors that came nearest to the boundary, as indices."""
        rows = self.alive.nonzero()[:, 0]
        number = kept(len(rows), share, self.options.least)
        return rows[self.gap[rows].argsort(descending=True, stable=True)[:number]]

    def attack(self, rows: Tensor, number: int, plan: Round) -> None:
        """One climb of the images `rows` in round `number`, and what it teaches."""
        model, x, y, threat, generator, _ = self.problem
        w = self._direction(rows, number)
        if number == 1:
            self.second = len(rows)

        def gradient(x_adv: Tensor, part: Tensor, step: int) -> tuple[Tensor, Tensor]:
            warm = step < plan.warm
            weights = w[part]
            return input_gradient(
                model, x_adv, y[rows][part], lambda z, y: (weights * z).sum(dim=1) if warm else -margin(z, y)
            )

        start = random_start(x[rows], threat, generator)
        sizes = _sizes(threat.eps, plan)
        found = climb(model, x[rows], y[rows], start, threat, sizes, gradient, self.options.precision)
        better = found.gap > self.gap[rows]
        self.best[rows[better]], self.gap[rows[better]] = found.x_adv[better], found.gap[better]
        fell = found.fell <= len(sizes)
        self.alive[rows[fell]] = False
        self.warm_falls += int((found.fell <= plan.warm).sum()) if plan.warm else 0
        if number == 1:  # later directions are not random any more: they would teach what they were given
            self._learn(rows[fell], w[fell], found.label[fell])
        self.climbs += 1

    def _learn(self, rows: Tensor, w: Tensor, label: Tensor) -> None:
        self.toward_own += float(w.gather(1, self.problem.y[rows][:, None]).sum())
        self.toward_wrong += float(w.gather(1, label[:, None]).sum())

    def _direction(self, rows: Tensor, number: int) -> Tensor:
        """Weights of the logits (n,classes) that a warm start increases.

        Uniform in [-1,1]; from the third round on the weight of the label has the sign that led to success in the
        second round, in most cases, and so has that of one wrong class, which changes from climb to climb. In the last
        rounds they lead from the label to the likeliest classes.
        """
        generator, classes = self.problem.random, self.ranking.shape[1] + 1
        w = 2 * torch.rand((len(rows), classes), generator=generator) - 1
        u = float(torch.rand((), generator=generator))
        scale = max(classes, 10) / 10
        if number >= 2:
            late = number >= LATE
            low, high = (-0.8, 0.1) if late else (-0.1, 0.5) if self.toward_own > 0 else (-0.5, 0.1)
            targets = FAVOURITES if late else next((n for c, n in TARGETS.items() if classes <= c), 20)
            rank = self.climbs % min(targets, classes - 1)
            push = -PUSH if self.toward_wrong < 0 and not late else PUSH
            each = torch.arange(len(rows))
            w[each, self.problem.y[rows].cpu()] = scale * (low + (high - low) * u)
            w[each, self.ranking[rows, rank].cpu()] = scale * push
        return w.to(self.problem.x)


def _sizes(eps: float, plan: Round) -> list[float]:
    """Lengths of a climb's steps: ε of the warm start, then a cosine from ε to ε/10, or ε/1000 above ten steps."""
    low = eps * (0.1 if plan.steps <= 10 else 0.001)
    cosine = (1 + math.cos(math.pi * step / (plan.steps + 1)) for step in range(plan.steps))
    return [eps] * plan.warm + [low + (eps - low) * c / 2 for c in cosine]
