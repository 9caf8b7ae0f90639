"""Geometry of threat models: projections, steps, starts and the stored form of a perturbation.

Pure functions on images (N,C,H,W) in [0,1]; nothing here knows a loss or a model.
"""

from typing import Literal

import torch
from torch import Tensor

from dfshield.core.fractions import fraction
from dfshield.core.threat import Norm, Threat

NORMAL_START = 0.001
"""Standard deviation of the ``normal`` start (Zhang et al. 2019, TRADES)."""
SPARSE = 0.05
"""Share of the pixels that a step in l1 moves, one at least; a convention (Tramèr and Boneh 2019 move 1 % and more)."""


def _norms(delta: Tensor, order: int = 2) -> Tensor:
    """Per-sample norm (N,1,1,1), l2 unless `order` says otherwise."""
    return delta.flatten(1).norm(p=order, dim=1).view(-1, *[1] * (delta.ndim - 1))


def _shorten(delta: Tensor, threat: Threat) -> Tensor:
    if threat.norm == "linf":
        return delta.clamp(-threat.eps, threat.eps)
    if threat.norm == "l1":
        return _shorten_l1(delta, threat.eps)
    return delta * (threat.eps / _norms(delta).clamp_min(1e-12)).clamp_max(1)


def _shorten_l1(delta: Tensor, eps: float) -> Tensor:
    """The nearest point of the l1 ball: every entry loses as much of its size, down to zero (Duchi et al. 2008)."""
    size = delta.flatten(1).abs()
    falling = size.sort(dim=1, descending=True).values
    places = torch.arange(1, size.shape[1] + 1, device=delta.device)
    excess = (falling.cumsum(dim=1) - eps) / places
    last = (falling > excess).sum(dim=1, keepdim=True).clamp_min(1) - 1
    lost = excess.gather(1, last).clamp_min(0)
    return (delta.flatten(1).sign() * (size - lost).clamp_min(0)).view_as(delta)


def project(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """The point of the ε-ball around `x` nearest to `x_adv`, cut to [0,1] (Madry et al. 2018, Eq 2)."""
    return (x + _shorten(x_adv - x, threat)).clamp(0, 1)


def step(x_adv: Tensor, grad: Tensor, size: float, norm: Norm) -> Tensor:
    """One ascent step of length `size`: along the sign for linf, along the per-sample unit gradient for l2.

    For l1 along the signs of the largest entries of the gradient, `SPARSE` of them, whose pixels can move that way
    (Tramèr and Boneh, Adversarial Training and Robustness for Multiple Perturbations, NeurIPS 2019). A zero gradient
    gives no step. The result is not projected.
    """
    if norm == "linf":
        return x_adv + size * grad.sign()
    if norm == "l1":
        stuck = ((x_adv <= 0) & (grad < 0)) | ((x_adv >= 1) & (grad > 0))
        slope = grad.masked_fill(stuck, 0).flatten(1)
        moved = max(1, round(SPARSE * slope.shape[1]))
        chosen = slope.abs().topk(moved, dim=1).indices
        along = torch.zeros_like(slope).scatter(1, chosen, slope.gather(1, chosen).sign())
        return x_adv + (size / moved * along).view_as(x_adv)
    # scaled by the largest entry first: squares of a saturated loss's gradients (1e-20) underflow in float32
    largest = grad.flatten(1).abs().amax(dim=1).view(-1, *[1] * (grad.ndim - 1))
    direction = grad / largest.clamp_min(torch.finfo(grad.dtype).tiny)
    return x_adv + size * direction / _norms(direction).clamp_min(1e-12)


def step_size(threat: Threat, l2_step: str) -> float:
    """Length of a gradient step: ε/4; for l2 `l2_step`, a length (``15/255``) or a share of ε (``eps/5``)."""
    if threat.norm != "l2":
        return threat.eps / 4
    length, _, divisor = l2_step.partition("/")
    return threat.eps / int(divisor) if length == "eps" else fraction(l2_step)


def random_start(
    x: Tensor, threat: Threat, generator: torch.Generator, kind: Literal["uniform", "normal"] = "uniform"
) -> Tensor:
    """A random point near `x`, drawn on the generator's device.

    ``uniform``: U(-ε,ε) per pixel for linf; for l2 a uniform direction with radius U(0,ε), for l1 one of the l1 sphere;
    cut to [0,1].
    ``normal``: `x` + 0.001·N(0,1) as in TRADES, not projected: that is left to the first step.
    """
    device = generator.device

    def normal() -> Tensor:
        return torch.randn(x.shape, generator=generator, device=device).to(x)

    if kind == "normal":
        return x + NORMAL_START * normal()
    if threat.norm == "linf":
        noise = (2 * torch.rand(x.shape, generator=generator, device=device).to(x) - 1) * threat.eps
    else:
        direction = normal()
        if threat.norm == "l1":  # entries of the l1 sphere's uniform points are those of a Laplace vector, scaled
            random = torch.rand(x.shape, generator=generator, device=device).to(x)
            direction = direction.sign() * -random.clamp_min(torch.finfo(x.dtype).tiny).log()
        radius = torch.rand((len(x), *[1] * (x.ndim - 1)), generator=generator, device=device).to(x) * threat.eps
        order = 1 if threat.norm == "l1" else 2
        noise = direction / _norms(direction, order).clamp_min(1e-12) * radius
    return (x + noise).clamp(0, 1)


def to_half(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """The perturbation of `x_adv`, projected, as float16 rounded away from zero.

    Rounding outwards means that `from_half`, which projects again, gives back exactly the pixels that lay on the
    border of the linf ball or of [0,1]; rounding to nearest would shorten them. Pixels that are not finite become
    unperturbed ones.
    """
    delta = project(x, torch.where(x_adv.isfinite(), x_adv, x), threat) - x
    half = delta.half()
    shorter = half.float().abs() < delta.abs()
    # the bits of a float16 without its sign are ordered like its magnitude
    return (half.view(torch.int16) + shorter.to(torch.int16)).view(torch.float16)


def from_half(x: Tensor, perturbation: Tensor, threat: Threat) -> Tensor:
    """The perturbed image that a stored float16 `perturbation` stands for: `x` plus it, within ε and [0,1]."""
    return (x + _shorten(perturbation.to(x.dtype), threat)).clamp(0, 1)
