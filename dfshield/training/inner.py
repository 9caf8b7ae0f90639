"""The inner maximisation of adversarial training: find x̂' near x̂ (Eq 2, 7)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from dfshield import registry
from dfshield.core.fractions import fraction
from dfshield.core.lp import project, random_start, step, step_size
from dfshield.core.schedules import inner_steps, warmed
from dfshield.core.threat import Threat, parse_threat
from dfshield.options import TrainOptions
from dfshield.training.losses import Outputs, kl

Network = Callable[[torch.Tensor], torch.Tensor]
Objective = Callable[[Outputs], torch.Tensor]
"""What an ascent raises: a scalar, the sum over the images of a mini-batch."""
NOISE = 2
"""Largest noise of N-FGSM in multiples of ε (k of de Jorge et al. 2022)."""


def summed(loss: Callable[[Outputs, TrainOptions], torch.Tensor], options: TrainOptions, out: Outputs) -> torch.Tensor:
    """A training loss, which is a mean over the images, as their sum."""
    return len(out.clean) * loss(out, options)


OBJECTIVES: dict[str, Objective] = {
    "kl": lambda out: kl(out.clean, out.adversarial, "sum"),
    "ce": lambda out: F.cross_entropy(out.adversarial, out.labels, reduction="sum"),
    "teacher": lambda out: kl(out.teacher, out.adversarial, "sum"),
}


def objective(options: TrainOptions) -> Objective | None:
    """The objective that the inner attack maximises; None if the random start is used as it is."""
    entry = registry.LOSSES[options.loss]
    name = entry.inner if options.inner == "auto" else options.inner
    if name == "loss":
        return functools.partial(summed, entry.load(), options)
    return OBJECTIVES.get(name)


class Task(NamedTuple):
    """What an inner maximisation is given."""

    model: Network
    """In eval mode, with frozen parameters."""
    x: torch.Tensor
    """Images x̂ (N,C,H,W) in [0,1]."""
    labels: torch.Tensor
    """(N,)."""
    teacher: torch.Tensor | None
    """Teacher logits (N,C) on x̂, for objectives that read them."""
    random: torch.Generator


@dataclass(frozen=True)
class InnerAttack:
    """The inner maximisation of one epoch, by projected gradient ascent; subclasses are the other `SEARCHES`."""

    objective: Objective | None
    """What is maximised; None takes the start as it is."""
    start: registry.Start
    threat: Threat
    steps: int
    size: float
    """Length of a step."""
    stop: float | None = None
    """Convergence (`fosc`) at which an image takes no further step."""
    compiles: ClassVar[bool] = True
    """Whether generated code can run it: that has no second derivatives."""

    @classmethod
    def of(cls, options: TrainOptions, epoch: int) -> "InnerAttack":
        """The attack of epoch `epoch` (from 0), by the search that the loss's paper or the options ask for."""
        entry, threat = registry.LOSSES[options.loss], parse_threat(options.threat)
        search = SEARCHES[options.searched]
        factor = options.eps_factor * warmed(options.eps_warmup, epoch, options.epochs)
        return search(
            objective(options),
            entry.start,
            threat._replace(eps=factor * threat.eps),
            inner_steps(options.searched, options.attack_steps, epoch, options.epochs),
            factor * search.step_size(threat, options),
            **search.own(options, epoch),
        )

    @classmethod
    def full(cls, options: TrainOptions) -> "InnerAttack":
        """Plain projected gradient ascent at full strength, the same in every epoch and for every search."""
        threat, start = parse_threat(options.threat), registry.LOSSES[options.loss].start
        return InnerAttack(
            objective(options) or OBJECTIVES["ce"],
            "uniform" if start == "image" else start,
            threat,
            options.attack_steps,
            step_size(threat, options.l2_step),
        )

    @staticmethod
    def step_size(threat: Threat, options: TrainOptions) -> float:
        """Length of a step at the full ε."""
        return step_size(threat, options.l2_step)

    @staticmethod
    def own(options: Any, epoch: int) -> dict[str, Any]:
        """Fields that a subclass sets, from the options of its loss in epoch `epoch`."""
        return {}

    def solve(self, task: Task) -> torch.Tensor:
        """x̂' (N,C,H,W) in [0,1] and as near to x̂ as the search's `beyond` says: within ε for all but N-FGSM."""
        return pgd_ascent(
            *(task.model, task.x, task.labels, self.objective, self.start, self.threat, self.steps, self.size),
            *(task.random, task.teacher, self.stop),
        )


class SingleStep(InnerAttack):
    """One step of length ε (Goodfellow et al. 2015)."""

    @staticmethod
    def step_size(threat: Threat, options: TrainOptions) -> float:
        return threat.eps


class NoisyStep(SingleStep):
    """N-FGSM (de Jorge et al. 2022), for l∞: x̂' = x̂ + η + α sign(∇ objective at x̂ + η), η ~ U(-2ε,2ε), α = ε.

    It has a start of its own and is not projected: x̂' lies within 3ε of x̂. Without an objective it is x̂ + η.

    Differs from the publication: both x̂ + η and x̂' are cut to [0,1], so that the network sees no other pixels.
    """

    def solve(self, task: Task) -> torch.Tensor:
        noisy = random_start(task.x, self.threat._replace(eps=NOISE * self.threat.eps), task.random)
        if self.objective is None:
            return noisy
        slope = slope_of(self.objective, task.model, task.x, task.labels, task.teacher)
        return step(noisy, slope(noisy), self.size, self.threat.norm).clamp(0, 1)


class FoscAscent(InnerAttack):
    """Ascent that stops at a convergence, ever stricter over the epochs (Wang et al. 2019, DART)."""

    @staticmethod
    def own(options: Any, epoch: int) -> dict[str, Any]:
        return {"stop": options.fosc_max * max(0.0, 1 - epoch / (fraction(options.fosc_share) * options.epochs))}


@dataclass(frozen=True)
class MarginSearch(InnerAttack):
    """Ascent, then the misclassified point nearest to the image (Ding et al. 2020, MMA)."""

    halvings: int = 0

    @staticmethod
    def own(options: Any, epoch: int) -> dict[str, Any]:
        return {"halvings": options.halvings}

    def solve(self, task: Task) -> torch.Tensor:
        return mma_boundary(task.model, task.x, super().solve(task), task.labels, self.halvings)


@dataclass(frozen=True)
class PowerIteration(InnerAttack):
    """The most curved direction (Miyato et al. 2016, VAT); it takes no steps and reads no labels."""

    iterations: int = 1
    compiles: ClassVar[bool] = False

    @staticmethod
    def own(options: Any, epoch: int) -> dict[str, Any]:
        return {"iterations": options.iterations}

    def solve(self, task: Task) -> torch.Tensor:
        return vat_direction(task.model, task.x, self.threat, self.iterations, task.random)


SEARCHES: dict[str, type[InnerAttack]] = {
    "pgd": InnerAttack,
    "single-step": SingleStep,
    "power": PowerIteration,
    "nearest": MarginSearch,
    "curriculum": InnerAttack,
    "fosc": FoscAscent,
    "n-fgsm": NoisyStep,
}
"""The code of each search; `registry.SEARCHES` has the facts."""


def pgd_ascent(
    model: Network,
    x: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective | None,
    start: registry.Start,
    threat: Threat,
    steps: int,
    size: float,
    generator: torch.Generator,
    teacher: torch.Tensor | None = None,
    stop: float | None = None,
) -> torch.Tensor:
    """Projected gradient ascent on `objective`; returns x̂' (N,C,H,W) within ε of `x` and in [0,1].

    The clean logits are computed once. With `stop`, an image goes no further once its `fosc` is at most that, at the
    earliest after one step (Wang et al. 2019, DART).
    """
    adversarial = x.clone() if start == "image" else random_start(x, threat, generator, start)
    if objective is None:
        return project(x, adversarial, threat)
    slope = slope_of(objective, model, x, labels, teacher)
    for taken in range(steps):
        gradient = slope(adversarial)
        moved = project(x, step(adversarial, gradient, size, threat.norm), threat)
        if stop is not None and taken:
            moved = torch.where(fosc(x, adversarial, gradient, threat) > stop, moved, adversarial)
        adversarial = moved
    return adversarial


def slope_of(
    objective: Objective, model: Network, x: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None
) -> Network:
    """Gradient of `objective` by x̂', as a function of x̂' (N,C,H,W); the clean logits are computed here, once."""
    with torch.no_grad():
        clean = model(x).float()
    targets = clean.new_empty(0) if teacher is None else teacher

    def slope(adversarial: torch.Tensor) -> torch.Tensor:
        adversarial = adversarial.detach().requires_grad_()
        value = objective(Outputs(clean, model(adversarial).float(), targets, labels))
        return torch.autograd.grad(value, adversarial)[0]

    return slope


def fosc(x: torch.Tensor, adversarial: torch.Tensor, gradient: torch.Tensor, threat: Threat) -> torch.Tensor:
    """First-order stationary condition (Wang et al. 2019, DART), shape (N,1,1,1): 0 where the maximum is reached.

    max over the ε-ball of <y - x', g> = ε ‖g‖ - <x' - x, g>, with the 1-norm for l∞ and the 2-norm for l2.
    """
    g = gradient.flatten(1)
    reach = threat.eps * g.norm(dim=1, p=1 if threat.norm == "linf" else 2)
    return (reach - ((adversarial - x).flatten(1) * g).sum(1)).view(-1, *[1] * (x.ndim - 1))


def mma_boundary(
    model: Network, x: torch.Tensor, adversarial: torch.Tensor, labels: torch.Tensor, halvings: int
) -> torch.Tensor:
    """The misclassified point nearest to `x` on the way to `adversarial`, by bisection; `adversarial` if none is met.

    So every image has an ε of its own, at most the threat's: AN-PGD (Ding et al. 2020, Algorithm 1) with the largest ε
    as the first guess, which needs no memory of earlier epochs.
    """
    direction = adversarial - x
    with torch.no_grad():
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        for _ in range(halvings):
            middle = (low + high) / 2
            wrong = model(x + middle.view(-1, 1, 1, 1) * direction).argmax(1) != labels
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
        return x + high.view(-1, 1, 1, 1) * direction


def vat_direction(
    model: Network, x: torch.Tensor, threat: Threat, iterations: int, generator: torch.Generator
) -> torch.Tensor:
    """The virtual adversarial point (Miyato et al. 2016): length ε along the most curved direction of KL(S(x) ‖ S(·)).

    Power iteration on the Hessian H = Jᵀ (diag p - p pᵀ) J at `x`, from a random direction d. The paper takes H d from
    the gradient at x + ξ d with ξ = 1e-6, which float32 cannot resolve; this is the exact product, its limit.
    """
    x = x.detach().requires_grad_()
    logits = model(x).float()
    p = logits.detach().softmax(1)
    factor = torch.zeros_like(logits, requires_grad=True)
    (slope,) = torch.autograd.grad(logits, x, factor, create_graph=True)  # Jᵀ factor, so its own gradient gives J d
    direction = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    for _ in range(iterations):
        direction = step(torch.zeros_like(x), direction, 1.0, "l2").detach()
        (change,) = torch.autograd.grad(slope, factor, direction, retain_graph=True)
        weighted = p * change
        weighted = weighted - p * weighted.sum(1, keepdim=True)
        (direction,) = torch.autograd.grad(logits, x, weighted, retain_graph=True)
    x = x.detach()
    return project(x, step(x, direction, threat.eps, threat.norm), threat)
