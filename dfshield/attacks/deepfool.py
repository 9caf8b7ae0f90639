"""DeepFool (Moosavi-Dezfooli et al. 2016): step after step to the nearest boundary of the linearised model."""

import torch
from torch import Tensor, nn

from dfshield.attacks.base import Problem, differentiable, frozen
from dfshield.attacks.nearest import Nearest
from dfshield.core.lp import Norm
from dfshield.options.attacks_minimal import DeepFool

TINY = 1e-30
FAR = 1e6
NUDGE = 1e-5
"""Length by which a step goes beyond a boundary, or rounding would hold up an image that lies on one."""


def deepfool(problem: Problem, options: DeepFool) -> Tensor:
    """The first misclassified point (N,C,H,W) on each image's way, within ε or not; the image where there is none.

    Every step goes to the nearest of the boundaries to the `options.candidates` likeliest classes, as the gradients
    have them (Algorithm 2; Eq 10 and 11 with p = 2 or ∞). The perturbation is lengthened by `options.overshoot`.

    Differs from the publication:

    - The lengthened perturbation is judged at every step, and the gradients are taken there, as the released code has
      it; the paper lengthens it once at the end. Steps are longer by 1e-5 (released code: 1e-4).
    - Points are cut to [0,1], and pixels at 0 or 1 take no part in a step that would take them out.
    - An image keeps its candidates, which are those of its clean logits; the paper looks at all classes.
    """
    model, x, y, threat, _, _ = problem
    nearest = Nearest(x, threat.norm)
    running = torch.arange(len(x), device=x.device)
    total = torch.zeros_like(x)
    rivals = None
    with frozen(model):
        for left in reversed(range(options.steps + 1)):
            points = (x[running] + (1 + options.overshoot) * total[running]).clamp(0, 1)
            with torch.set_grad_enabled(left > 0):
                points.requires_grad_(left > 0)
                logits = differentiable(model)(points)
            seen = logits.detach()
            if rivals is None:
                rivals = _rivals(seen, y, options.candidates)
            broken = seen.argmax(dim=1) != y[running]
            nearest.see(points.detach(), broken, running)
            rest = ~broken
            if not left or not rest.any():
                break
            gaps, gradients = _differences(logits, points, y[running], rivals[running])
            running = running[rest]
            total[running] += _step(gaps[rest], gradients[rest], threat.norm)
    return nearest.points


def _differences(logits: Tensor, points: Tensor, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
    """z_k - z_y of every rival k, shape (n,K), and their gradients (n,K,C,H,W), zero where the box ends."""
    gaps = logits.gather(1, rivals) - logits.gather(1, y[:, None])
    parts = [torch.autograd.grad(gap.sum(), points, retain_graph=True)[0] for gap in gaps.unbind(1)]
    gradients, here = torch.stack(parts, dim=1).nan_to_num(0, 0, 0), points.detach()[:, None]
    ends = ((here >= 1) & (gradients > 0)) | ((here <= 0) & (gradients < 0))
    return gaps.detach(), gradients.masked_fill(ends, 0)


def _dual(gradients: Tensor, norm: Norm) -> Tensor:
    """Length (n,K) of gradients (n,K,C,H,W): how fast a step of unit `norm` can change what they are of."""
    flat = gradients.flatten(2)
    if norm == "linf":
        return flat.abs().sum(dim=2)
    # scaled by the largest entry first: squares of a saturated model's gradients (1e-20) underflow in float32
    largest = flat.abs().amax(dim=2, keepdim=True).clamp_min(TINY)
    return largest[..., 0] * (flat / largest).norm(dim=2)


def _step(gaps: Tensor, gradients: Tensor, norm: Norm) -> Tensor:
    """The smallest step (n,C,H,W) onto one of the linearised boundaries; none without a gradient."""
    dual = _dual(gradients, norm).clamp_min(TINY)
    distance, k = (gaps.abs() / dual).min(dim=1)
    rows = torch.arange(len(gaps), device=gaps.device)
    chosen = gradients[rows, k]
    shape = (-1, *[1] * (chosen.ndim - 1))
    direction = chosen.sign() if norm == "linf" else chosen / dual[rows, k].view(shape)
    # far beyond the box no step says anything, and an infinite one would give NaN
    return (distance.clamp_max(FAR) + NUDGE).view(shape) * direction


def nearest_class(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, candidates: int) -> Tensor:
    """The class (N,) whose boundary is nearest to each of `x` (N,C,H,W) by the gradients there, among the likeliest.

    `y` (N,) are their classes, which count as one of the `candidates`; the runner-up where gradients tell nothing.
    """
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        logits = differentiable(model)(points)
        rivals = _rivals(logits.detach(), y, candidates)
        gaps, gradients = _differences(logits, points, y, rivals)
    nearest = (gaps.abs() / _dual(gradients, norm).clamp_min(TINY)).argmin(dim=1, keepdim=True)
    return rivals.gather(1, nearest)[:, 0]


def _rivals(logits: Tensor, y: Tensor, candidates: int) -> Tensor:
    """The likeliest other classes (n,K), K = `candidates` - 1 or all of them."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(candidates, logits.shape[1]) - 1).indices
