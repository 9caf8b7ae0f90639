"""What every attack needs of a model, and the ascent that gradient attacks share.

An attack is a function ``(problem, options) -> x_adv`` of one chunk of images (N,C,H,W) in [0,1] that the model still
classifies as labelled. It may return anything: the evaluation projects and judges it. Its randomness comes from
`problem.random` alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.core.lp import project, step
from dfshield.core.threat import Threat
from dfshield.options import AttackOptions

Objective = Callable[..., Tensor]
"""``(logits, y)`` to one value an image (N,), which is maximised; where an attack has an aim for every image, such as a
target class, ``(logits, y, aim)``."""


class Problem(NamedTuple):
    """What an attack gets: a model, images that it classifies rightly, and what it may do to them."""

    model: nn.Module
    """Images (N,C,H,W) in [0,1] to logits (N,classes): what gradients go through."""
    x: Tensor
    """Images (N,C,H,W) in [0,1]."""
    y: Tensor
    """Labels (N,)."""
    threat: Threat
    random: torch.Generator
    others: Mapping[str, Any] = {}
    """What the attack's entry needs besides: ``teacher`` and ``surrogate`` are models; ``guide`` is images (N,C,H,W) of
    other classes, one for each of `x`."""


Attack = Callable[[Problem, Any], Tensor]
"""``(problem, options) -> x_adv``."""


class Component(NamedTuple):
    """One attack of an ensemble, with the name that ledgers give it."""

    name: str
    attack: Attack
    bf16_safe: bool = False
    """Works as well in bf16, if that is asked for: it follows signs of gradients, not small differences of logits."""


class Ensemble(NamedTuple):
    """Attacks in order, each for the survivors of those before it."""

    components: tuple[Component, ...]
    protocol: str = ""
    """The field's name of what runs, such as ``aa-standard``; empty without one."""
    note: str = ""
    """How it departs from its protocol's definition, because of the number of classes or the image shape."""


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of parameters; both are put back afterwards."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    training = [m for m in model.modules() if m.training]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def differentiable(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`model` with fresh float32 logits that always have a gradient: zero where the model gives none.

    A model that cuts the graph (``no_grad``, ``argmax``) would otherwise end the attack in an error; as it is, it
    shows up as zero gradients.
    """

    def logits(x: Tensor) -> Tensor:
        out: Tensor = model(x).float()
        return out + 0 * x.flatten(1).sum(dim=1, keepdim=True) if x.requires_grad else out.clone()

    return logits


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective | None = None, aim: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N,classes), and the gradient (N,C,H,W) of each image's `objective` with respect to its pixels.

    The objective maps logits, `y` (N,) and `aim` (N,…), if there is one, to one value an image; without an objective it
    is the cross entropy.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = differentiable(model)(x)
        told = (logits, y) if aim is None else (logits, y, aim)
        values = objective(*told) if objective else F.cross_entropy(logits, y, reduction="none")
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return logits.detach(), gradient.nan_to_num(0, 0, 0)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max of the other logits, shape (N,): negative where an image is misclassified."""
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def clearly_wrong(logits: Tensor, y: Tensor, precision: str) -> Tensor:
    """Whether logits (N,classes) are wrong by more than the rounding of crafting in `precision` explains: (N,)."""
    return margin(logits, y) < -MISCLASSIFICATION_MARGIN[precision] * logits.abs().amax(dim=1)


class Eot(nn.Module):
    """Expectation over transformation (Athalye et al. 2018): the mean logits of `draws` passes of a model that draws.

    It stands around the model that is crafted on, so that every attack's gradient is that of the mean; verdicts never
    come from it.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,classes)."""
        total: Tensor = sum(self.model(x).float() for _ in range(self.draws))
        return total / self.draws


def clean(problem: Problem, options: AttackOptions) -> Tensor:
    """No attack: the images as they are."""
    return problem.x


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    threat: Threat,
    options: AttackOptions,
    sizes: Sequence[float],
    objective: Objective | None = None,
    aim: Tensor | None = None,
    momentum: float = 0,
) -> Tensor:
    """Projected gradient ascent from `x_adv` (N,C,H,W); the last points, each within ε of `x` and in [0,1].

    There is one step of each of the `sizes`. With `momentum` μ a step follows μ times the direction of the step before
    plus the gradient over its mean magnitude (Dong et al. 2018, Eq 6), else the gradient.
    An image takes no further step once it is misclassified by more than the rounding of the arithmetic, which is
    `MISCLASSIFICATION_MARGIN` of its largest logit. With `options.reference` every image takes every step.
    """
    result = x_adv.clone()
    running = torch.arange(len(x), device=x.device)
    direction = torch.zeros_like(x) if momentum else None
    for size in sizes:
        logits, gradient = input_gradient(model, x_adv, y, objective, aim)
        if direction is not None:
            mean = gradient.flatten(1).abs().mean(dim=1).view(-1, 1, 1, 1)
            gradient = direction = momentum * direction + gradient / mean.clamp_min(torch.finfo(mean.dtype).tiny)
        if not options.reference:
            rest = ~clearly_wrong(logits, y, options.precision)
            if not rest.all():
                result[running] = x_adv
                running, x, y, x_adv, gradient = (values[rest] for values in (running, x, y, x_adv, gradient))
                aim = aim if aim is None else aim[rest]
                direction = direction if direction is None else gradient
            if not len(running):
                return result
        x_adv = project(x, step(x_adv, gradient, size, threat.norm), threat)
    result[running] = x_adv
    return result


MISCLASSIFICATION_MARGIN = {"fp32": 1e-3, "bf16": 0.05}
"""Margin, relative to the largest logit, beyond which no rounding of crafting decides about a misclassification."""
