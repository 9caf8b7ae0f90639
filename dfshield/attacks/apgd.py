"""APGD (Croce and Hein 2020, Algorithm 1) and the objectives that AutoAttack and its kin ascend.

Differs from the publication:

- the step size is halved where the value rose in *at most* 75 % of the steps since the last checkpoint, as the authors'
  code has it; the paper says fewer than;
- the first checkpoint compares the first step with the start, where the code compares it with zero;
- an image that is clearly misclassified takes no further step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.attacks.base import MISCLASSIFICATION_MARGIN, Objective, differentiable, frozen, input_gradient, margin
from dfshield.core.lp import project
from dfshield.core.threat import Threat

MOMENTUM = 0.75
"""Share of the new step; the rest is the step before."""
RISING = 0.75
"""Share of steps that must raise the value for the step size to stay (ρ)."""
TINY = 1e-12
Aimed = Callable[..., Tensor]
"""``(logits, y)``, and where each image has an aim ``(logits, y, aim)``, to one value an image (N,)."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of each image (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y (N,): works with any number of classes."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (N,), -(z_y - max of the others) / (z_1st - z_3rd); needs three classes (Eq 6)."""
    top = logits.topk(3, dim=1).values
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR (N,), (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2); needs four classes (Eq 7)."""
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def checkpoints(steps: int) -> list[int]:
    """Numbers of steps after which the step size is reconsidered: 22 % of all, then ever closer, to 6 % (Sec 3.1)."""
    gap, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = [], gap
    while at <= steps:
        found.append(at)
        gap = max(gap - shrink, least)
        at += gap
    return found


@dataclass
class _Rows:
    """All that is known of the images that still run; every field has a row for each."""

    index: Tensor
    x: Tensor
    y: Tensor
    aim: Tensor
    low: Tensor
    high: Tensor
    point: Tensor
    before: Tensor
    """the point before"""
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    checked_value: Tensor
    """the best value at the last checkpoint"""
    size: Tensor
    rises: Tensor
    """steps since the last checkpoint that raised the value"""
    halved: Tensor
    """at the last checkpoint"""
    lowest: Tensor
    """least margin so far"""

    def kept(self, mask: Tensor) -> "_Rows":
        return _Rows(**{name: values[mask] for name, values in vars(self).items()})


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    objective: Aimed,
    steps: int,
    generator: torch.Generator,
    aim: Tensor | None = None,
    clear: float = MISCLASSIFICATION_MARGIN["fp32"],
) -> tuple[Tensor, Tensor]:
    """Ascend `objective` for `steps` steps from a random point at distance ε of `x` (N,C,H,W), within ε and [0,1].

    Returns images (N,C,H,W), each at its least margin if that is negative, else `x`, and which are misclassified (N,).
    An image stops once its margin is below -`clear` times its largest logit. `aim` (N,) is what the objective has
    besides, such as target classes. It takes `steps` gradients and one more forward pass an image.
    """
    result, broken = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with frozen(model), torch.no_grad():
        rows = _start(x, y, threat, generator, aim)
        checks, last_check = set(checkpoints(steps)), 0
        for done in range(steps + 1):
            towards = bound(objective, None if aim is None else rows.aim)
            if done < steps:
                logits, rows.gradient = input_gradient(model, rows.point, rows.y, towards)
            else:
                logits = differentiable(model)(rows.point)
            distance = margin(logits, rows.y)
            fell = (distance < rows.lowest).nonzero()[:, 0]
            if len(fell):
                result[rows.index[fell]] = rows.point[fell]
                broken[rows.index[fell]] = True
                rows.lowest[fell] = distance[fell]
            if done == steps:
                break
            value = towards(logits, rows.y)
            _remember(rows, value, first=not done)
            if done in checks:
                _reconsider(rows, done - last_check)
                last_check = done
            rest = distance >= -clear * logits.abs().amax(dim=1)
            if not rest.all():
                rows = rows.kept(rest)
            if not len(rows.index):
                break
            _move(rows, threat, first=not done)
    return result, broken


def bound(objective: Aimed, aim: Tensor | None) -> Objective:
    """`objective` with its `aim` (N,), if there is one."""
    return objective if aim is None else lambda logits, y: objective(logits, y, aim)


def _start(x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator, aim: Tensor | None) -> _Rows:
    shape, device = x.shape, generator.device
    if threat.norm == "linf":
        noise = (2 * torch.rand(shape, generator=generator, device=device) - 1).to(x)
        order = torch.inf
    else:
        noise = torch.randn(shape, generator=generator, device=device).to(x)
        order = 2
    point = (x + threat.eps * _unit(noise, order)).clamp(0, 1)
    zero = torch.zeros(len(x), device=x.device)
    return _Rows(
        index=torch.arange(len(x), device=x.device),
        x=x,
        y=y,
        aim=y if aim is None else aim,
        low=(x - threat.eps).clamp_min(0),
        high=(x + threat.eps).clamp_max(1),
        point=point,
        before=point,
        gradient=x,
        value=zero,
        best=point.clone(),
        best_gradient=torch.zeros_like(x),
        best_value=zero,
        checked_value=zero,
        size=torch.full((len(x), 1, 1, 1), 2 * threat.eps, device=x.device),
        rises=zero.clone(),
        halved=torch.ones_like(y, dtype=torch.bool),
        lowest=zero.clone(),
    )


def _unit(direction: Tensor, order: float) -> Tensor:
    length = torch.linalg.vector_norm(direction.flatten(1), order, dim=1).view(-1, 1, 1, 1)
    return direction / (length + TINY)


def _remember(rows: _Rows, value: Tensor, first: bool) -> None:
    if first:
        rows.best_value, rows.checked_value = value.clone(), value.clone()
        rows.best_gradient = rows.gradient.clone()
    else:
        rows.rises += value > rows.value
        better = (value > rows.best_value).nonzero()[:, 0]
        rows.best[better] = rows.point[better]
        rows.best_gradient[better] = rows.gradient[better]
        rows.best_value[better] = value[better]
    rows.value = value


def _reconsider(rows: _Rows, steps: int) -> None:
    """Halve the step size, and go back to the best point, where the last `steps` steps were of little use."""
    halve = rows.rises <= RISING * steps
    halve |= ~rows.halved & (rows.checked_value >= rows.best_value)
    rows.halved, rows.checked_value = halve, rows.best_value.clone()
    rows.rises = torch.zeros_like(rows.rises)
    back = halve.nonzero()[:, 0]
    rows.size[back] /= 2
    rows.point[back] = rows.best[back]
    rows.gradient[back] = rows.best_gradient[back]


def _move(rows: _Rows, threat: Threat, first: bool) -> None:
    share = 1.0 if first else MOMENTUM
    if threat.norm == "linf":
        to = rows.gradient.sign().mul_(rows.size).add_(rows.point)
        torch.minimum(torch.maximum(to, rows.low, out=to), rows.high, out=to)
    else:
        to = project(rows.x, rows.point + rows.size * _unit(rows.gradient, 2), threat)
    if not first:  # z + a (to - z) + (1 - a) (z - before)
        to.mul_(share).add_(rows.point, alpha=2 - 2 * share).sub_(rows.before, alpha=1 - share)
        to = to.clamp_(rows.low, rows.high) if threat.norm == "linf" else project(rows.x, to, threat)
    rows.before, rows.point = rows.point, to
