"""Attacks that know of a detector: images that fool the network and pass the detector.

Both aims are counted in units of their typical sizes, zero where they are met. A strategy says which way a step goes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfshield.attacks.base import Eot, input_gradient, margin
from dfshield.core.lp import project, random_start, step
from dfshield.core.threat import Threat
from dfshield.defences.detectors import Watched
from dfshield.options import DetectOptions

ENOUGH = 0.05
"""How far beyond the border, in units of the typical size, an attack pushes margin and score."""
ANY = -1
"""The aim of an image that may be taken for any other class."""


class Fitted(NamedTuple):
    """A detector with its threshold."""

    watched: Watched
    threshold: float
    """Images with a larger score are flagged."""
    spread: float
    """Standard deviation of the held-out images' scores."""


class Aims:
    """What is missing of both aims of an attack, by the outputs (N,classes + 1) of a watched network."""

    def __init__(self, fitted: Fitted, x: Tensor, y: Tensor) -> None:
        self.threshold, self.spread = fitted.threshold, max(fitted.spread, 1e-6)
        with torch.no_grad():
            self.typical = float(margin(fitted.watched(x)[:, :-1], y).abs().mean().clamp_min(1e-6))

    def fooling(self, out: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        """How far each image is from the class `aim` (N,), or from any class but `y` where that is `ANY`: (N,)."""
        logits = out[:, :-1]
        towards = logits.gather(1, y[:, None]) - logits.gather(1, aim.clamp_min(0)[:, None])
        gap = torch.where(aim == ANY, margin(logits, y), towards[:, 0])
        return (gap / self.typical + ENOUGH).clamp_min(0)

    def passing(self, out: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        """How far the score of each image is above the threshold: (N,)."""
        return ((out[:, -1] - self.threshold) / self.spread + ENOUGH).clamp_min(0)

    def met(self, out: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        """Whether nothing is missing: (N,)."""
        return (self.fooling(out, y, aim) + self.passing(out, y, aim)) == 0


Strategy = Callable[[Aims, nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(aims, model, x, y, aim)`` to the outputs for `x` (N,C,H,W) and the direction in which each image goes on."""


def together(aims: Aims, model: nn.Module, x: Tensor, y: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of what is missing (Carlini and Wagner 2017, Adversarial Examples Are Not Easily Detected)."""
    return input_gradient(model, x, y, lambda *to: -aims.fooling(*to) - aims.passing(*to), aim)


def selective(aims: Aims, model: nn.Module, x: Tensor, y: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """One aim that is missed, fooling first (Bryniarski et al. 2022, selective projected gradient descent)."""

    def one(*to: Tensor) -> Tensor:
        fooling = aims.fooling(*to)
        return -torch.where(fooling > 0, fooling, aims.passing(*to))

    return input_gradient(model, x, y, one, aim)


def orthogonal(aims: Aims, model: nn.Module, x: Tensor, y: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """The same without the part along the other aim's slope (Bryniarski et al. 2022, orthogonal)."""
    out, fooling = input_gradient(model, x, y, lambda *to: -aims.fooling(*to), aim)
    # the slope of the score itself: what keeps an image that passes where it is
    _, passing = input_gradient(model, x, y, lambda out, *to: -out[:, -1], aim)
    first = (aims.fooling(out, y, aim) > 0).view(-1, 1, 1, 1)
    _, kept = input_gradient(model, x, y, lambda out, y, aim: -margin(out[:, :-1], y), aim)
    main, other = torch.where(first, fooling, passing), torch.where(first, passing, kept)
    flat, along = main.flatten(1), other.flatten(1)
    share = (flat * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True).clamp_min(1e-20)
    return out, (flat - share * along).view_as(main)


STRATEGIES: tuple[Strategy, ...] = (together, selective, orthogonal)
"""In the order in which they are tried, each on the images that those before it left."""


def evade(
    fitted: Fitted, x: Tensor, y: Tensor, threat: Threat, options: DetectOptions, random: torch.Generator
) -> Tensor:
    """Images near `x` (N,C,H,W), of classes `y` (N,), that fool the network and pass the detector, where any is found.

    Projected gradient ascent from random starts, with steps that shrink from ε/4 to nothing: `options.restarts` rounds
    of every one of the `STRATEGIES`. The first round leads to any other class, each further one to the next likeliest.
    An image stops where both aims are met.
    """
    crafted: nn.Module = Eot(fitted.watched, options.eot) if options.eot > 1 else fitted.watched
    aims = Aims(fitted, x, y)
    with torch.no_grad():
        ranked = fitted.watched(x)[:, :-1].scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
    result, left = x.clone(), torch.arange(len(x), device=x.device)
    for number in range(min(options.restarts, ranked.shape[1])):
        for strategy in STRATEGIES:
            aim = torch.full_like(left, ANY) if number == 0 else ranked[left, number - 1]
            found, open_ = _ascend(strategy, aims, crafted, x[left], y[left], aim, threat, options.steps, random)
            result[left] = found
            left = left[open_]
            if not len(left):
                return result
    return result


def _ascend(
    strategy: Strategy,
    aims: Aims,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    aim: Tensor,
    threat: Threat,
    steps: int,
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One run of a strategy: the images where they stopped, and which of them (N,) have not met both aims."""
    result, open_ = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    x_adv, rows = random_start(x, threat, random), torch.arange(len(x), device=x.device)
    for taken in range(steps):
        out, direction = strategy(aims, model, x_adv, y[rows], aim[rows])
        met = aims.met(out, y[rows], aim[rows])
        result[rows] = x_adv
        open_[rows[met]] = False
        rows, x_adv, direction = rows[~met], x_adv[~met], direction[~met]
        if not len(rows):
            return result, open_
        x_adv = project(x[rows], step(x_adv, direction, threat.eps / 4 * (1 - taken / steps), threat.norm), threat)
    result[rows] = x_adv
    with torch.no_grad():
        open_[rows] = ~aims.met(model(x_adv), y[rows], aim[rows])
    return result, open_
