"""Targeted FAB (Croce and Hein 2020b, Algorithm 1): the smallest perturbation that reaches a target class.

Differs from the publication:

- the projection solves for its multiplier by Newton's method instead of sorting;
- an image is done once a point within ε is found, and its smallest perturbation is not sought further;
- there is no final search on the line between the image and the point found, as in the authors' AutoAttack.
"""

import torch
from torch import Tensor, nn

from dfshield.attacks.apgd import bound, targeted_margin
from dfshield.attacks.base import differentiable, frozen, input_gradient, margin
from dfshield.attacks.inference import forward_only
from dfshield.core.threat import Threat

BIAS = 0.1
"""Largest weight of the projection of the image itself (α_max)."""
OVERSHOOT = 1.05
"""How far beyond the hyperplane a step goes (η)."""
BACK = 0.9
"""Where on the way from the image to a misclassified point the search goes on (β)."""
CLEAR = 1e-5
"""Margin, relative to the largest logit, beyond which rounding does not decide: what is found lies at the border."""
ROUNDS = 40
"""Newton steps of a projection at most; a few do."""
EXACT = 1e-5
"""Share of the way to the hyperplane that a projection may leave, far less than the overshoot."""
SMALLEST = 1e-30


def project_on_hyperplane(point: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    """The smallest d (N,D), in `norm`, with w·(point + d) = b and point + d in [0,1]; as close as the box lets it.

    `point` and `w` are (N,D), `b` is (N,). Along the ray of the optimum each coordinate moves by min(λ s, room) with s
    one (l∞) or |w| (l2), and so the way made towards the hyperplane is concave and piecewise linear in λ: Newton's
    method from 0 ends exactly at the multiplier, from below.
    """
    gap = b - _dot(w, point)
    heading = w.sign() * gap.sign()[:, None]
    gap, size = gap.abs(), w.abs()
    room = heading.clamp_min(0).sub_(point).abs_()  # to 1 or to 0
    if norm == "linf":
        room *= size.sign()
    slopes = size if norm == "linf" else size.square()
    multiplier = gap / slopes.sum(dim=1).clamp_min(SMALLEST)
    for _ in range(ROUNDS):
        moved = multiplier[:, None] if norm == "linf" else multiplier[:, None] * size
        moved = torch.minimum(moved, room)
        slope = _dot((room - moved).sign_(), slopes)  # of the coordinates that are not at the border of the box
        rest = gap - _dot(size, moved)
        # without slope all coordinates are at the border of the box
        if not ((rest > EXACT * gap) & (slope > 0)).any():
            break
        multiplier = multiplier + rest.clamp_min(0) / slope.clamp_min(SMALLEST) * (slope > 0)
    return heading.mul_(moved)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar products of rows (N,)."""
    return (a * b).sum(dim=1)


def _length(delta: Tensor, norm: str) -> Tensor:
    """Norm of each row (N,); the library's own maximum norm is slow."""
    return delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)


def fab(model: nn.Module, x: Tensor, y: Tensor, target: Tensor, threat: Threat, steps: int) -> tuple[Tensor, Tensor]:
    """Seek points beyond the border between `y` and `target` (N,) near `x` (N,C,H,W), all classified as `y`.

    Returns images (N,C,H,W), `x` where nothing is found within ε, and which of them are misclassified (N,). It takes a
    gradient and one more forward pass an image and step.
    """
    result, broken = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    index = torch.arange(len(x), device=x.device)
    at = x.clone()
    with frozen(model), torch.no_grad():
        forward = differentiable(forward_only(model, x))
        for _ in range(steps):
            if not len(index):
                break
            logits, gradient = input_gradient(model, at, y, bound(targeted_margin, target))
            at = fab_step(x, at, targeted_margin(logits, y, target), gradient, threat.norm)
            logits = forward(at)
            wrong = margin(logits, y)
            over = wrong < 0
            if not over.any():
                continue
            delta = at - x
            within = over & (_length(delta.flatten(1), threat.norm) <= threat.eps)
            result[index[within]], broken[index[within]] = at[within], True
            at = torch.addcmul(x, delta, (1 - (1 - BACK) * over).view(-1, 1, 1, 1))
            done = within & (wrong < -CLEAR * logits.abs().amax(dim=1))
            if done.any():
                index, x, y, target, at = (values[~done] for values in (index, x, y, target, at))
    return result, broken


def fab_step(x: Tensor, at: Tensor, value: Tensor, gradient: Tensor, norm: str) -> Tensor:
    """The next point: between the projections of `at` and of the image on the linearised border, both overshot."""
    w = gradient.flatten(1)
    here, image = at.flatten(1), x.flatten(1)
    b = _dot(w, here) - value
    own, images = project_on_hyperplane(here, w, b, norm), project_on_hyperplane(image, w, b, norm)
    length, other = (_length(d, norm).clamp_min(1e-8) for d in (own, images))
    bias = (length / (length + other)).clamp_max(BIAS)[:, None]
    own.mul_(OVERSHOOT).add_(here)
    images.mul_(OVERSHOOT).add_(image)
    return own.lerp_(images, bias).clamp_(0, 1).view_as(x)
