"""Attacks that see a model's labels and nothing else: Boundary and HopSkipJump.

Both start from a misclassified image and come nearer to the attacked one while they stay misclassified. They know no ε;
a point counts if it lies within the ball. An image whose search finds such a point takes no further queries, unless
`options.reference` is set. An image whose nearest point lies outside is given back as it is: projected onto the ball
that point would be another one, of which the search knows nothing.
"""

import math

import torch
from torch import Tensor

from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.budget import BLENDS, HALVINGS, STARTS, hopskipjump_draws
from dfshield.options import AttackOptions
from dfshield.options.attacks_blackbox import Boundary, HopSkipJump

WINDOW = 10
"""Trials after which the Boundary attack adapts its steps."""
RARE, FREQUENT = 0.2, 0.5
"""Shares of successful trials below which its steps shrink and above which they grow."""
STANDSTILL = 1e-7
"""Length of its steps towards the image, as a share of the distance, that change nothing any more."""
FIRST_RADIUS, RADIUS = 0.1, 0.01
"""Distance of HopSkipJump's probes from the boundary: first in pixel units, then as a share of the image's distance."""


class Search:
    """Nearest misclassified points of a batch of images, by queries for labels.

    All state is indexed by image. `nearest` (N,C,H,W) and `distance` (N,), in `norm`, are of the nearest misclassified
    point that was queried: the image itself, and infinity, before the first.
    """

    def __init__(self, problem: Problem, options: AttackOptions, norm: str) -> None:
        self.problem, self.options, self.norm = problem, options, norm
        x = self.x = problem.x
        self.nearest = x.clone()
        self.distance = torch.full((len(x),), torch.inf, device=x.device)
        self.active = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def rows(self) -> Tensor:
        """Indices of the images that are still attacked."""
        return self.active.nonzero()[:, 0]

    def labels(self, points: Tensor) -> Tensor:
        """The model's labels (M,) of `points` (M,C,H,W): one query each."""
        parts = points.split(self.options.chunk)
        return torch.cat([self.problem.model(part).argmax(dim=1) for part in parts])

    def wrong(self, points: Tensor, rows: Tensor) -> Tensor:
        """Which of `points` (K·M,C,H,W), for images `rows` (M,) again and again, are misclassified (K·M,)."""
        return self.labels(points) != self.problem.y[rows].repeat(len(points) // len(rows))

    def attempt(self, points: Tensor, rows: Tensor) -> Tensor:
        """Query `points` (M,C,H,W), one for each of the images `rows`, and keep what is nearer; which are wrong."""
        wrong = self.wrong(points, rows)
        self.keep(points[wrong], rows[wrong])
        return wrong

    def keep(self, points: Tensor, rows: Tensor) -> None:
        """Keep misclassified `points` (M,C,H,W) of images `rows` that are nearer than those before."""
        delta, threat = points - self.x[rows], self.problem.threat
        length = norms(delta, self.norm)
        ends = length == 0 if self.options.reference else norms(delta, threat.norm) <= threat.eps
        better = ends | (length < self.distance[rows])
        self.nearest[rows[better]], self.distance[rows[better]] = points[better], length[better]
        self.active[rows[ends]] = False

    def start(self) -> None:
        """Find a misclassified point for every image; an image without one is no longer attacked.

        It is the first of up to `STARTS` images of uniform noise that is misclassified, else the nearest other image of
        the batch that is predicted as another class.
        """
        everything = self.rows()
        labels = self.labels(self.x)
        wrong = labels != self.problem.y
        self.keep(self.x[wrong], everything[wrong])
        for _ in range(STARTS):
            rows = everything[self.distance.isinf()]
            if not len(rows):
                return
            self.attempt(self.random(len(rows), *self.x.shape[1:]), rows)
        rows = everything[self.distance.isinf()]
        apart = torch.cdist(self.x[rows].flatten(1), self.x.flatten(1))
        apart[labels == self.problem.y[rows, None]] = torch.inf
        found = apart.isfinite().any(dim=1)
        self.active[rows[~found]] = False
        self.keep(self.x[apart.argmin(dim=1)][found], rows[found])

    def approach(self, far: Tensor, halvings: int) -> Tensor:
        """Misclassified points (N,C,H,W) near the boundary between the images and misclassified points `far` (N,C,H,W).

        Bisection between right and wrong, of every image that is still attacked.
        """
        low = torch.zeros(len(self.x), device=self.x.device)
        high = torch.ones_like(low)
        for _ in range(halvings):
            rows = self.rows()
            if not len(rows):
                break
            middle = (low[rows] + high[rows]) / 2
            wrong = self.attempt(blend(self.x[rows], far[rows], middle, self.norm), rows)
            high[rows[wrong]], low[rows[~wrong]] = middle[wrong], middle[~wrong]
        return blend(self.x, far, high, self.norm)

    def inside(self) -> Tensor:
        """Nearest points (N,C,H,W) where they lie within ε, else the images themselves."""
        threat = self.problem.threat
        within = norms(self.nearest - self.x, threat.norm) <= threat.eps
        return torch.where(spread(within), self.nearest, self.x)

    def random(self, *shape: int, normal: bool = False) -> Tensor:
        """Numbers of U(0,1), or of N(0,1)."""
        generator = self.problem.random
        draw = torch.randn if normal else torch.rand
        return draw(shape, generator=generator, device=generator.device).to(self.x)


def norms(delta: Tensor, norm: str) -> Tensor:
    """Norm ``linf`` or ``l2`` of each perturbation (N,C,H,W), shape (N,)."""
    return delta.flatten(1).abs().amax(dim=1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def spread(values: Tensor) -> Tensor:
    """Values (N,) of images for every pixel (N,1,1,1)."""
    return values.view(-1, 1, 1, 1)


def blend(x: Tensor, far: Tensor, share: Tensor, norm: str) -> Tensor:
    """Points (N,C,H,W) at `share` (N,) in [0,1] of the distance from `x` to `far`.

    For l2 they are on the line; for linf `far` is cut to the l∞ ball of that radius. A share of one is `far` itself.
    """
    delta = far - x
    if norm == "linf":
        radius = spread(share * norms(delta, norm))
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        delta = spread(share) * delta
    return torch.where(spread(share == 1), far, x + delta)


def boundary(problem: Problem, options: Boundary) -> Tensor:
    """Boundary attack: the points found (N,C,H,W) that lie within ε, the images where none does (Brendel et al. 2018).

    A walk of `options.steps` steps from a misclassified point towards the image. Each has two parts: a random step on
    the sphere around the image and, where that stays misclassified, one towards the image. A step is kept if it comes
    nearer in l2. Both lengths adapt to the share of steps that succeed.

    Differs from the publication:

    - Bisection brings the start near the boundary first. Without it most of a small budget would go there.
    - Lengths adapt after every `WINDOW` trials, for the same reason.
    - If no noise is misclassified, another image of the batch is the start.
    """
    return boundary_search(problem, options).inside()


def boundary_search(problem: Problem, options: Boundary) -> Search:
    """The search of `boundary`, with the nearest points however far they are."""
    search = Search(problem, options, "l2")
    n, device = len(problem.x), problem.x.device
    sphere, source = (Rate(length, n, device) for length in (options.spherical_step, options.source_step))
    with frozen(problem.model), torch.no_grad():
        search.start()
        search.approach(search.nearest.clone(), BLENDS)
        for _ in range(options.steps):
            rows = search.rows()
            if not len(rows):
                break
            x, length = search.x[rows], search.distance[rows].clone()
            away = search.nearest[rows] - x
            noise = search.random(*away.shape, normal=True)
            noise -= spread((noise * away).flatten(1).sum(dim=1) / length**2) * away
            noise *= spread(sphere.length[rows] * length / norms(noise, "l2").clamp_min(1e-12))
            around = (x + (away + noise) / (1 + spread(sphere.length[rows]) ** 2).sqrt()).clamp(0, 1)
            wrong = search.attempt(around, rows)
            sphere.count(rows, wrong)
            at, x, away, length = rows[wrong], x[wrong], (around - search.x[rows])[wrong], length[wrong]
            going = search.active[at]
            at, x, away, length = at[going], x[going], away[going], length[going]
            if len(at):
                share = (1 - source.length[at]) * length / norms(away, "l2").clamp_min(1e-12)
                source.count(at, search.attempt(x + spread(share.clamp_max(1)) * away, at))
            changed = sphere.adapt(options.adaptation)
            source.length *= changed
            source.adapt(options.adaptation)
            search.active &= source.length > STANDSTILL
    return search


class Rate:
    """Length of each image's steps (N,), as a share of the distance, by how many of them succeed."""

    def __init__(self, length: float, n: int, device: torch.device) -> None:
        self.length = torch.full((n,), length, device=device)
        self.trials, self.successes = torch.zeros(n, device=device), torch.zeros(n, device=device)

    def count(self, rows: Tensor, success: Tensor) -> None:
        """Count one trial of each of the images `rows`."""
        self.trials[rows] += 1
        self.successes[rows] += success.float()

    def adapt(self, factor: float) -> Tensor:
        """Change the lengths of images with `WINDOW` trials and count anew; the factors (N,) of the change."""
        full, share = self.trials >= WINDOW, self.successes / self.trials.clamp_min(1)
        change = torch.ones_like(self.length)
        change[full & (share > FREQUENT)] = factor
        change[full & (share < RARE)] = 1 / factor
        before = self.length
        self.length = (self.length * change).clamp_max(0.5)
        self.trials[full], self.successes[full] = 0, 0
        return self.length / before


def hopskipjump(problem: Problem, options: HopSkipJump) -> Tensor:
    """HopSkipJump: the points found (N,C,H,W) that lie within ε, the images where none does (Chen et al. 2020, Alg. 2).

    `options.steps` iterations in the threat's norm, each: bisection to the decision boundary; an estimate of the
    gradient's direction there, from the labels of random points around; a step along it, of the distance over √t and
    halved until it ends misclassified.

    Differs from the publication:

    - Probes lie at a hundredth of the image's distance from the boundary, not at its d-th part for images of d values:
      in float32 they would drown in rounding. The tolerance of the bisection follows.
    - The nearest of all points queried counts, not the last.
    - A step that is not misclassified after as many halvings as float32 resolves is not taken.
    - If no noise is misclassified, another image of the batch is the start.
    """
    return hopskipjump_search(problem, options).inside()


def hopskipjump_search(problem: Problem, options: HopSkipJump) -> Search:
    """The search of `hopskipjump`, with the nearest points however far they are."""
    search = Search(problem, options, problem.threat.norm)
    size = problem.x[0].numel()
    tolerance = RADIUS / (size if search.norm == "linf" else math.sqrt(size))
    halvings = min(HALVINGS, math.ceil(-math.log2(tolerance)))
    with frozen(problem.model), torch.no_grad():
        search.start()
        point = search.approach(search.nearest.clone(), halvings)
        for iteration in range(1, options.steps + 1):
            rows = search.rows()
            if not len(rows):
                break
            distance = norms(point[rows] - search.x[rows], search.norm)
            radius = torch.full_like(distance, FIRST_RADIUS) if iteration == 1 else RADIUS * distance
            direction = _direction(search, point[rows], rows, radius, hopskipjump_draws(options, iteration))
            if search.norm == "linf":
                direction = direction.sign()
            else:
                direction /= spread(norms(direction, "l2").clamp_min(1e-12))
            far, length = point.clone(), distance / math.sqrt(iteration)
            for _ in range(HALVINGS):
                if not len(rows):
                    break
                step = (point[rows] + spread(length) * direction).clamp(0, 1)
                wrong = search.attempt(step, rows)
                far[rows[wrong]] = step[wrong]
                rows, length, direction = rows[~wrong], length[~wrong] / 2, direction[~wrong]
            point = search.approach(far, halvings)
    return search


def _direction(search: Search, points: Tensor, rows: Tensor, radius: Tensor, draws: int) -> Tensor:
    """Estimate of the direction (M,C,H,W) into the misclassified region at `points` (M,C,H,W) near the boundary.

    The mean of unit vectors, signed by the labels of the points that they lead to, with the mean sign as a baseline.
    """
    noises, signed, balance = torch.zeros_like(points), torch.zeros_like(points), torch.zeros_like(radius)
    at_once = max(1, search.options.chunk // len(points))
    for done in range(0, draws, at_once):
        count = min(at_once, draws - done)
        noise = search.random(count, *points.shape, normal=True)
        noise /= noise.flatten(2).norm(dim=2).view(count, -1, 1, 1, 1)
        probes = (points + spread(radius) * noise).clamp(0, 1)
        noise = (probes - points) / spread(radius)  # where the border of [0,1] cut it
        sign = 2.0 * search.wrong(probes.flatten(0, 1), rows).view(count, -1) - 1
        noises += noise.sum(dim=0)
        signed += (sign.view(count, -1, 1, 1, 1) * noise).sum(dim=0)
        balance += sign.sum(dim=0)
    balance /= draws
    # the mean is a baseline, unless all labels agree
    return torch.where(spread(balance.abs() == 1), signed, signed - spread(balance) * noises)
