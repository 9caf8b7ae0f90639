"""Attacks that follow the input gradient of the cross entropy, and what every attack needs of a model.

An attack is a function ``(model, x, y, threat, options, generator) -> x_adv`` of one chunk of images (N,C,H,W) in
[0,1] that the model still classifies as `y`. It may return anything: the evaluation projects and judges it. Its
randomness comes from `generator` alone.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.attacks.threat import project, random_start, step
from dfshield.options import AttackOptions
from dfshield.runtime import fraction
from dfshield.threat import Threat

Attack = Callable[[nn.Module, Tensor, Tensor, Threat, AttackOptions, torch.Generator], Tensor]


class Component(NamedTuple):
    """One attack of an ensemble, with the name that ledgers give it."""

    name: str
    attack: Attack


class Ensemble(NamedTuple):
    """Attacks in order, each for the survivors of those before it."""

    components: tuple[Component, ...]
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


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators inside the block; put them back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def differentiable(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """`model` with fresh float32 logits that always have a gradient: zero where the model gives none.

    A model that cuts the graph (``no_grad``, ``argmax``) would otherwise end the attack in an error; as it is, it
    shows up as zero gradients.
    """

    def logits(x: Tensor) -> Tensor:
        out: Tensor = model(x).float()
        return out + 0 * x.flatten(1).sum(dim=1, keepdim=True) if x.requires_grad else out.clone()

    return logits


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (N,C,H,W) of each image's cross entropy with `y` (N,) with respect to its pixels."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(differentiable(model)(x), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient.nan_to_num(0, 0, 0)


def clean(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
) -> Tensor:
    """No attack: the images as they are."""
    return x


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
) -> Tensor:
    """One step of length ε from the image itself (Goodfellow et al. 2015); for l2 along the unit gradient."""
    with frozen(model):
        return project(x, step(x, input_gradient(model, x, y), threat.eps, threat.norm), threat)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
) -> Tensor:
    """Projected gradient ascent on the cross entropy from uniform random starts (Madry et al. 2018, Eq 2).

    `options.steps` steps of ε/4 (linf) or `options.l2_step` (l2); the last point of a run counts. Each of
    `options.restarts` runs has only the images that the runs before it did not break.
    """
    size = threat.eps / 4 if threat.norm == "linf" else fraction(options.l2_step)
    result = x.clone()
    alive = torch.arange(len(x), device=x.device)
    with frozen(model):
        for _ in range(options.restarts):
            x_adv = random_start(x[alive], threat, generator)
            for _ in range(options.steps):
                gradient = input_gradient(model, x_adv, y[alive])
                x_adv = project(x[alive], step(x_adv, gradient, size, threat.norm), threat)
            result[alive] = x_adv
            with torch.no_grad():
                alive = alive[model(x_adv).argmax(dim=1) == y[alive]]
            if not len(alive):
                break
    return result
