"""Attack programs: what a search chooses from (Yao et al. 2021, section 3).

A program is a kind of attack with a loss, a direction (untargeted or targeted), a step size and its effort. `KINDS`
and `LOSSES` are tables: a new entry takes part in every search.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfshield.attacks.base import Problem, clearly_wrong, input_gradient, margin
from dfshield.attacks.budget import GRADIENT, cw_passes, deepfool_passes, fab_passes
from dfshield.attacks.climb import climb
from dfshield.attacks.cw import cw
from dfshield.attacks.deepfool import deepfool
from dfshield.attacks.fab_alone import fab
from dfshield.core.lp import project, random_start, step
from dfshield.core.threat import Threat
from dfshield.options.attacks_minimal import CarliniWagner, DeepFool, Fab

Objective = Callable[[Tensor, Tensor], Tensor]
"""``(logits, rows) -> (n,)``: what a program increases at points of the images `rows` (n,) of its problem."""
Passes = Callable[[Any, int, float, int], float]
"""``(options, images, robust, classes)`` to forward passes."""


@dataclass(frozen=True)
class Program:
    """One attack with all its settings."""

    kind: str
    loss: str
    targeted: bool
    softmax: bool
    """The loss sees probabilities instead of logits."""
    steps: int
    runs: int
    """Restarts; of a targeted program each for the next likeliest class."""
    size: float
    """Length of a step, in ε."""

    def __str__(self) -> str:
        towards = "targeted" if self.targeted else "untargeted"
        of = "softmax" if self.softmax else "logits"
        return f"{self.kind}, {self.steps} x {self.runs}, {towards} {self.loss} of {of}, step {self.size:g} ε"

    @property
    def passes(self) -> int:
        """Most forward passes an image, with a verdict on each run."""
        return self.runs * (KINDS[self.kind].passes(self.steps) + 1)


def fit(program: Program, limit: int) -> Program:
    """The program within `limit` forward passes an image: with fewer runs, then with fewer steps."""
    passes = KINDS[program.kind].passes
    steps = next((steps for steps in range(program.steps, 1, -1) if passes(steps) < limit), 1)
    return replace(program, steps=steps, runs=max(1, min(program.runs, limit // (passes(steps) + 1))))


class Kind(NamedTuple):
    """A kind of attack."""

    run: Callable[[Problem, Program, Objective, str], Tensor]
    """``(problem, program, objective, precision) -> x_adv`` of one run (N,C,H,W)."""
    steps: tuple[int, int]
    """Fewest and most steps."""
    runs: tuple[int, int]
    """Fewest and most runs."""
    passes: Callable[[int], int]
    """Most forward passes an image of one run of so many steps."""


def _at(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None])[:, 0]


def _cross_entropy(values: Tensor, y: Tensor, target: Tensor | None, own: Tensor) -> Tensor:
    log = values.log_softmax(dim=1)
    return -_at(log, y) if target is None else _at(log, target)


def _hinge(values: Tensor, y: Tensor, target: Tensor | None, own: Tensor) -> Tensor:
    return -margin(values, y) if target is None else _at(values, target) - _at(values, y)


def _dlr(values: Tensor, y: Tensor, target: Tensor | None, own: Tensor) -> Tensor:
    ordered = values.sort(dim=1, descending=True)[0]
    if target is None:
        spread = ordered[:, 0] - ordered[:, 2] if values.shape[1] > 2 else None
    else:
        spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 if values.shape[1] > 3 else None
    difference = _hinge(values, y, target, own)
    return difference if spread is None else difference / (spread + 1e-12)


def _l1(values: Tensor, y: Tensor, target: Tensor | None, own: Tensor) -> Tensor:
    return -_at(values, y) if target is None else _at(values, target)


def _match(values: Tensor, y: Tensor, target: Tensor | None, own: Tensor) -> Tensor:
    if target is None:
        return (values - own).square().sum(dim=1)
    swapped = own.scatter(1, y[:, None], own.gather(1, target[:, None]))
    swapped = swapped.scatter(1, target[:, None], own.gather(1, y[:, None]))
    return -(values - swapped).square().sum(dim=1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]] = {
    "ce": _cross_entropy,
    "dlr": _dlr,
    "hinge": _hinge,
    "l1": _l1,
    "logit": _match,
}
"""``(values, y, target, own) -> (n,)``, to be increased; `values` (n,classes) are logits or probabilities, `own` those
of the image itself. ``dlr`` is the hinge over its scale, the hinge alone where there are too few classes; ``l1`` moves
one value alone; ``logit`` leaves `own`, or comes near to it with label and target exchanged."""


class Found(NamedTuple):
    """The best points that were found for some images."""

    x_adv: Tensor
    """(N,C,H,W)."""
    margin: Tensor
    """(N,): negative where the image is broken."""
    clear: Tensor
    """Whether it is broken by more than rounding explains (N,)."""


def run_program(problem: Problem, program: Program, precision: str) -> Found:
    """All runs of a program: the points of the smallest margins, within ε and [0,1].

    A run has only the images that the runs before it did not break clearly. Costs `Program.passes` at most, and a
    forward pass for the ranking of targets.
    """
    model, x, y, threat, *_ = problem
    with torch.no_grad():
        clean = model(x).float()
    best, left = x.clone(), margin(clean, y)
    ranking = clean.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
    own = clean.softmax(dim=1) if program.softmax else clean
    alive = torch.arange(len(x), device=x.device)
    for number in range(program.runs):
        target = ranking[:, number % (clean.shape[1] - 1)] if program.targeted else None
        part = problem._replace(x=x[alive], y=y[alive])

        def objective(logits: Tensor, rows: Tensor, alive: Tensor = alive, target: Tensor | None = target) -> Tensor:
            which = alive[rows]
            values = logits.softmax(dim=1) if program.softmax else logits
            return LOSSES[program.loss](values, y[which], None if target is None else target[which], own[which])

        found = project(part.x, KINDS[program.kind].run(part, program, objective, precision), threat)
        with torch.no_grad():
            logits = model(found).float()
        now = margin(logits, part.y)
        better = now < left[alive]
        best[alive[better]], left[alive[better]] = found[better], now[better]
        alive = alive[~clearly_wrong(logits, part.y, precision)]
        if not len(alive):
            break
    clear = torch.ones_like(y, dtype=torch.bool)
    clear[alive] = False
    return Found(best, left, clear)


def _gradient(
    problem: Problem, objective: Objective, x_adv: Tensor, rows: Tensor, number: int = 0
) -> tuple[Tensor, Tensor]:
    return input_gradient(problem.model, x_adv, problem.y[rows], lambda logits, y: objective(logits, rows))


def _fgsm(problem: Problem, program: Program, objective: Objective, precision: str) -> Tensor:
    """One step of length ε from the image itself."""
    _, gradient = _gradient(problem, objective, problem.x, torch.arange(len(problem.x), device=problem.x.device))
    return step(problem.x, gradient, problem.threat.eps, problem.threat.norm)


def _pgd(problem: Problem, program: Program, objective: Objective, precision: str) -> Tensor:
    """Steps of one size along the gradient, from a uniform random start."""
    return _climb(problem, program, partial(_gradient, problem, objective), precision)


PAIRS = 10
"""Antithetic pairs of points of an estimated gradient."""


def _nes(problem: Problem, program: Program, objective: Objective, precision: str) -> Tensor:
    """The same along gradients that scores estimate (Ilyas et al. 2018), at points of half of ε around."""
    model, x, _, threat, generator, _ = problem
    width = threat.eps / 2 / (1 if threat.norm == "linf" else x[0].numel() ** 0.5)

    @torch.no_grad()
    def gradient(x_adv: Tensor, rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x_adv)
        for _ in range(PAIRS):
            noise = torch.randn(x_adv.shape, generator=generator).to(x)
            up, down = (objective(model(x_adv + sign * width * noise).float(), rows) for sign in (1, -1))
            total += (up - down).view(-1, 1, 1, 1) * noise
        return model(x_adv).float(), total

    return _climb(problem, program, gradient, precision)


def _climb(
    problem: Problem,
    program: Program,
    gradient: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    precision: str,
) -> Tensor:
    model, x, y, threat, generator, _ = problem
    start, sizes = random_start(x, threat, generator), [program.size * threat.eps] * program.steps
    return climb(model, x, y, start, threat, sizes, gradient, precision).x_adv


MOMENTUM = 0.75
"""Share of the new step, the rest is of the last one (Croce and Hein 2020, Eq 6)."""
RISING = 0.75
"""Share of steps that have to increase the objective."""
CHECKS = 0.1
"""Steps between two checks, as a share of all."""
SHRINKING = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of all queries after which the area of squares halves."""


def _apgd(problem: Problem, program: Program, objective: Objective, precision: str) -> Tensor:
    """Steps with momentum whose size halves where the objective stalls, which then goes on from its best point.

    After Croce and Hein (2020, Algorithm 1), with `Program.size` times their first step of 2 ε and checks at equal
    distances: a size halves if fewer than `RISING` of the steps since the last check increased the objective, or none
    gave a new best one.
    """
    _, x, y, threat, generator, _ = problem
    result = best = last = x_adv = random_start(x, threat, generator)
    result, rows = result.clone(), torch.arange(len(x), device=x.device)
    size = x.new_full((len(x), 1, 1, 1), 2 * program.size * threat.eps)
    uphill, value = torch.zeros_like(x), x.new_full((len(x),), -torch.inf)
    top = checked = value
    gains = torch.zeros_like(y)
    every = max(2, round(CHECKS * program.steps))
    for number in range(program.steps):
        logits, gradient = _gradient(problem, objective, x_adv, rows)
        now = objective(logits, rows)
        gains, higher, value = gains + (now > value), (now > top).view(-1, 1, 1, 1), now
        top = now.maximum(top)
        best, uphill = torch.where(higher, x_adv, best), torch.where(higher, gradient, uphill)
        wrong = clearly_wrong(logits, y[rows], precision)
        result[rows[wrong]] = x_adv[wrong]
        state = (rows, x_adv, last, best, size, gradient, uphill, value, top, checked, gains)
        rows, x_adv, last, best, size, gradient, uphill, value, top, checked, gains = (part[~wrong] for part in state)
        if not len(rows):
            return result
        if number and number % every == 0:
            stalled = ((gains < RISING * every) | (top <= checked)).view(-1, 1, 1, 1)
            size = torch.where(stalled, size / 2, size)
            x_adv, last = torch.where(stalled, best, x_adv), torch.where(stalled, best, last)
            gradient = torch.where(stalled, uphill, gradient)
            checked, gains = top, torch.zeros_like(gains)
        unit = step(x_adv, gradient, 1.0, threat.norm) - x_adv
        ahead = project(x[rows], x_adv + size * unit, threat)
        momentum = MOMENTUM if number else 1.0
        moved = x_adv + momentum * (ahead - x_adv) + (1 - momentum) * (x_adv - last)
        last, x_adv = x_adv, project(x[rows], moved, threat)
    result[rows] = best
    return result


def _square(problem: Problem, program: Program, objective: Objective, precision: str) -> Tensor:
    """Random search over squares of one sign a channel (after Andriushchenko et al. 2020, Algorithm 1).

    Starts from vertical stripes; the squares shrink as theirs do. Within l2 a square is added to the perturbation,
    which is then scaled to ε, in place of their pairs of windows.
    """
    model, x, y, threat, generator, _ = problem
    channels, height, width = x.shape[1:]

    def signs(*shape: int) -> Tensor:
        return (2 * torch.randint(0, 2, shape, generator=generator) - 1).to(x)

    def at(delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_adv = project(x[rows], x[rows] + delta, threat)
        with torch.no_grad():
            logits = model(x_adv).float()
            return x_adv, objective(logits, rows), clearly_wrong(logits, y[rows], precision)

    rows = torch.arange(len(x), device=x.device)
    delta = _whole(signs(len(x), channels, 1, width).expand_as(x), threat)
    result, value, wrong = at(delta, rows)
    result = result.clone()
    for number in range(program.steps):
        rows, delta, value = rows[~wrong], delta[~wrong], value[~wrong]
        if not len(rows):
            break
        area = 0.8 * 0.5 ** sum(number > share * program.steps for share in SHRINKING)
        side = max(1, min(height, width, round((area * height * width) ** 0.5)))
        inside = torch.ones(len(rows), 1, 1, 1, dtype=torch.bool, device=x.device)
        for axis, length in ((2, height), (3, width)):
            corner = torch.randint(0, length - side + 1, (len(rows), 1), generator=generator).to(x.device)
            offset = torch.arange(length, device=x.device) - corner
            shape = [len(rows), 1, 1, 1]
            shape[axis] = length
            inside = inside & ((offset >= 0) & (offset < side)).view(shape)
        colour = signs(len(rows), channels, 1, 1).expand_as(delta)
        if threat.norm == "linf":
            proposed = torch.where(inside, threat.eps * colour, delta)
        else:
            proposed = _whole(delta + inside * _whole(colour, threat) * (height * width) ** 0.5 / side, threat)
        x_adv, now, fell = at(proposed, rows)
        better = (now > value) | fell
        delta, value = torch.where(better.view(-1, 1, 1, 1), proposed, delta), torch.where(better, now, value)
        result[rows[better]] = x_adv[better]
        wrong = fell
    return result


def _whole(delta: Tensor, threat: Threat) -> Tensor:
    """Perturbations scaled to length ε."""
    length = torch.linalg.vector_norm(delta.flatten(1), torch.inf if threat.norm == "linf" else 2, dim=1)
    return threat.eps * delta / length.view(-1, 1, 1, 1).clamp_min(1e-12)


def _smallest(attack: Callable[[Problem, Any], Tensor], options: Callable[[int], Any], passes: Passes) -> Kind:
    """A kind by an attack that looks for the smallest perturbation, which has a loss and target classes of its own.

    `options` gives its options by the steps; `passes` counts the forward passes of those.
    """

    def run(problem: Problem, program: Program, objective: Objective, precision: str) -> Tensor:
        return attack(problem, options(program.steps))

    return Kind(run, (20, 100), (1, 1), lambda steps: ceil(passes(options(steps), 1, 1.0, CANDIDATES)))


CANDIDATES = 10
"""Likeliest classes, an image's own among them, that a smallest perturbation may lead to."""
KINDS = {
    "fgsm": Kind(_fgsm, (1, 1), (1, 1), lambda steps: GRADIENT),
    "pgd": Kind(_pgd, (20, 200), (1, 10), lambda steps: GRADIENT * steps + 1),
    "apgd": Kind(_apgd, (20, 200), (1, 10), lambda steps: GRADIENT * steps),
    "nes": Kind(_nes, (20, 80), (1, 1), lambda steps: (2 * PAIRS + 1) * steps + 1),
    "square": Kind(_square, (2000, 8000), (1, 3), lambda steps: steps + 1),
    "deepfool": _smallest(deepfool, lambda steps: DeepFool(steps=steps, candidates=CANDIDATES), deepfool_passes),
    "cw": _smallest(cw, lambda steps: CarliniWagner(steps=steps, binary_steps=4), cw_passes),
    "fab": _smallest(fab, lambda steps: Fab(steps=steps, targets=3), fab_passes),
}
"""The published ranges; a budget that does not suffice for them cuts the runs first, then the steps."""
