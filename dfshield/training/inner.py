"""The inner maximisation of adversarial training: find x̂' near x̂ (Eq 2, 7)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dfshield import registry
from dfshield.core.fractions import fraction
from dfshield.core.lp import project, random_start, step
from dfshield.core.schedules import inner_steps, warmed
from dfshield.core.threat import Threat, parse_threat
from dfshield.options import CotrainOptions, TrainOptions
from dfshield.options.training import Dart, Mma, Vat
from dfshield.training.losses import Outputs, kl

Network = Callable[[torch.Tensor], torch.Tensor]
Objective = Callable[..., torch.Tensor]
"""``(clean, adversarial, teacher, labels) -> scalar``: logits (N,C) on x̂, on x̂', the teacher's on x̂; labels (N,)."""


def step_size(options: TrainOptions | CotrainOptions, threat: Threat) -> float:
    """ε/4 for l∞; for l2 the stated step (15/255 in the paper, ε/5 in the released code)."""
    if threat.norm == "linf":
        return threat.eps / 4
    return threat.eps / 5 if options.l2_step == "eps/5" else fraction(options.l2_step)


@dataclass(frozen=True)
class InnerAttack:
    """The inner attack of one epoch."""

    objective: Objective | None
    """What is maximised; None takes the start as it is."""
    start: registry.Start
    search: registry.Search
    threat: Threat
    steps: int
    size: float
    """Length of a step."""
    stop: float | None = None
    """Convergence (`fosc`) at which an image takes no further step."""
    options: TrainOptions | None = None
    """The loss's own options, for searches that read some."""

    @classmethod
    def of(cls, options: TrainOptions, epoch: int) -> "InnerAttack":
        """What the loss's paper asks for in epoch `epoch` (from 0)."""
        entry, threat = registry.LOSSES[options.loss], parse_threat(options.threat)
        factor = options.eps_factor * warmed(options.eps_warmup, epoch, options.epochs)
        size = threat.eps if entry.search == "single-step" else step_size(options, threat)
        stop = None
        if isinstance(options, Dart):
            stop = options.fosc_max * max(0.0, 1 - epoch / (fraction(options.fosc_share) * options.epochs))
        return cls(
            objective(options),
            entry.start,
            entry.search,
            threat._replace(eps=factor * threat.eps),
            inner_steps(entry.search, options.attack_steps, epoch, options.epochs),
            factor * size,
            stop,
            options,
        )

    @classmethod
    def full(cls, options: TrainOptions) -> "InnerAttack":
        """Plain projected gradient ascent at full strength, the same in every epoch and for every search."""
        threat = parse_threat(options.threat)
        start = registry.LOSSES[options.loss].start
        return cls(
            objective(options) or OBJECTIVES["ce"],
            "uniform" if start == "image" else start,
            "pgd",
            threat,
            options.attack_steps,
            step_size(options, threat),
        )

    def solve(
        self,
        model: Network,
        x: torch.Tensor,
        labels: torch.Tensor,
        teacher: torch.Tensor | None,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """x̂' (N,C,H,W) within ε of `x` and in [0,1]; `model` is in eval mode with frozen parameters."""
        return SEARCHES[self.search](self, model, x, labels, teacher, generator)


OBJECTIVES: dict[str, Objective] = {
    "kl": lambda clean, adversarial, teacher, labels: kl(clean, adversarial, "sum"),
    "ce": lambda clean, adversarial, teacher, labels: F.cross_entropy(adversarial, labels, reduction="sum"),
    "teacher": lambda clean, adversarial, teacher, labels: kl(teacher, adversarial, "sum"),
}


def objective(options: TrainOptions) -> Objective | None:
    """The objective that the inner attack maximises; None if the random start is used as it is."""
    entry = registry.LOSSES[options.loss]
    name = entry.inner if options.inner == "auto" else options.inner
    if name == "loss":
        return functools.partial(_summed, entry.load(), options)
    return OBJECTIVES.get(name)


def _summed(loss: Callable[..., torch.Tensor], options: TrainOptions, *logits: torch.Tensor) -> torch.Tensor:
    return len(logits[0]) * loss(Outputs(*logits), options)


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
    with torch.no_grad():
        clean = model(x).float()
    for taken in range(steps):
        adversarial.requires_grad_()
        value = objective(clean, model(adversarial).float(), teacher, labels)
        (gradient,) = torch.autograd.grad(value, adversarial)
        adversarial = adversarial.detach()
        moved = project(x, step(adversarial, gradient, size, threat.norm), threat)
        if stop is not None and taken:
            moved = torch.where(fosc(x, adversarial, gradient, threat) > stop, moved, adversarial)
        adversarial = moved
    return adversarial


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


# --- searches --------------------------------------------------------------------------------------------------------

Solve = Callable[[InnerAttack, Network, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Generator], torch.Tensor]


def _ascent(
    attack: InnerAttack,
    model: Network,
    x: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    return pgd_ascent(
        *(model, x, labels, attack.objective, attack.start, attack.threat, attack.steps, attack.size, generator),
        *(teacher, attack.stop),
    )


def _margin(
    attack: InnerAttack,
    model: Network,
    x: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    assert isinstance(attack.options, Mma)
    found = _ascent(attack, model, x, labels, teacher, generator)
    return mma_boundary(model, x, found, labels, attack.options.halvings)


def _curvature(
    attack: InnerAttack,
    model: Network,
    x: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    assert isinstance(attack.options, Vat)
    return vat_direction(model, x, attack.threat, attack.options.iterations, generator)


SEARCHES: dict[str, Solve] = {
    **dict.fromkeys(("pgd", "single-step", "curriculum", "fosc"), _ascent),
    "nearest": _margin,
    "power": _curvature,
}
"""How the inner maximisation is solved, by the name that a loss's entry has."""
