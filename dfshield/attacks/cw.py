"""Carlini and Wagner's attack (2017): the smallest perturbation as a penalised minimisation."""

import torch
from torch import Tensor, nn

from dfshield.attacks.base import Problem, differentiable, frozen, input_gradient, margin
from dfshield.attacks.budget import CW_CANDIDATES, CW_HALVINGS
from dfshield.attacks.deepfool import nearest_class
from dfshield.attacks.nearest import Nearest
from dfshield.options.attacks_minimal import CarliniWagner

FIRST_CONSTANT = 1e-3
LARGEST_CONSTANT = 1e10
FIRST_RADIUS = 8 / 255
"""Where ε is 0 and says nothing of the scale."""
REACH = 0.9
"""Share of tanh's range that [0,1] takes: at its very ends no few steps of Adam move a pixel."""


def cw(problem: Problem, options: CarliniWagner) -> Tensor:
    """The nearest misclassified points (N,C,H,W) that were found, within ε or not; the image where there is none.

    Within l2, Adam minimises ‖δ‖² + c·f(x + δ) with f = max(z_y - z_t + κ, 0) through tanh, and a binary search finds
    each image's smallest c that succeeds (sections V and VI.A; f is the paper's f_6).

    Differs from the publication:

    - Untargeted: each image has one target t, the class whose linearised boundary is the nearest in DeepFool's sense;
      the paper tries all targets. Any misclassification counts.
    - The points found are drawn back along the lines to the images while they stay misclassified, by bisection.
    - Adam has 200 steps instead of 10,000 by default, its learning rate falls to zero, and there is no early end.
      A constant succeeds if it does so in the second half: Adam's first steps are as long whatever it is.
    - tanh spans 1/0.9 of [0,1], less its offset at the start, so that black and white pixels can move; points are cut
      to [0,1].
    - Within l∞ the radius τ is a hard bound in place of the penalty Σ max(|δ_i| - τ, 0): f is minimised by projected
      steps along the sign of its gradient, and τ is bisected in place of shrunk by 0.9 (section VI.C).
    """
    model, x, y, threat, _, _ = problem
    with frozen(model):
        target = nearest_class(model, x, y, threat.norm, CW_CANDIDATES)
        nearest = Nearest(x, threat.norm)
        (_search_l2 if threat.norm == "l2" else _search_linf)(problem, target, nearest, options)
        nearest.draw_back(lambda points: _success(margin(model(points), y), options), CW_HALVINGS)
    return nearest.points


def _search_l2(problem: Problem, target: Tensor, nearest: Nearest, options: CarliniWagner) -> None:
    model, x, y, _, _, _ = problem
    low, high = torch.zeros(len(x), device=x.device), torch.full((len(x),), LARGEST_CONSTANT, device=x.device)
    constant = torch.full_like(low, FIRST_CONSTANT)
    for _ in range(options.binary_steps):
        won = _descend(model, x, y, target, constant, nearest, options)
        high, low = torch.where(won, constant, high), torch.where(won, low, constant)
        constant = torch.where(high < LARGEST_CONSTANT, (low + high) / 2, 10 * constant)


def _descend(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor, constant: Tensor, nearest: Nearest, options: CarliniWagner
) -> Tensor:
    """Minimise the penalised objective with one `constant` (N,) an image; returns which images it broke (N,)."""
    start = torch.atanh(REACH * (2 * x - 1))
    offset = x - (start.tanh() + 1) / 2
    w = start.clone().requires_grad_()
    adam = torch.optim.Adam([w], lr=options.lr)
    won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for number in range(options.steps):
        adam.param_groups[0]["lr"] = options.lr * (1 - number / options.steps)
        with torch.enable_grad():
            free = (w.tanh() + 1) / 2 + offset
            points = free + (free.clamp(0, 1) - free).detach()  # the gradient passes the borders
            logits = differentiable(model)(points)
            penalty = (_gap(logits, y, target) + options.confidence).clamp_min(0)
            total = ((points - x) ** 2).flatten(1).sum(dim=1) + constant * penalty
            (gradient,) = torch.autograd.grad(total.sum(), w)
        broken = _success(margin(logits.detach(), y), options)
        nearest.see(points.detach(), broken)
        if 2 * number >= options.steps:
            won |= broken
        w.grad = gradient.nan_to_num(0, 0, 0)
        adam.step()
    return won


def _search_linf(problem: Problem, target: Tensor, nearest: Nearest, options: CarliniWagner) -> None:
    model, x, y, threat, _, _ = problem
    low = torch.zeros(len(x), device=x.device)
    radius = torch.full_like(low, threat.eps or FIRST_RADIUS)
    for _ in range(options.binary_steps):
        won = _ascend(model, x, y, target, radius, nearest, options)
        low = torch.where(won, low, radius)
        known = nearest.distance.isfinite()
        radius = torch.where(known, (low + nearest.distance) / 2, (2 * radius).clamp_max(1))


def _ascend(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor, radius: Tensor, nearest: Nearest, options: CarliniWagner
) -> Tensor:
    """Maximise -f within a `radius` (N,) of each image until it breaks; returns which images did (N,)."""
    won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    running, points = torch.arange(len(x), device=x.device), x
    for number in range(options.steps + 1):
        own = y[running]
        aims = target[running]
        logits, gradient = input_gradient(model, points, own, lambda logits, y, aims: -_gap(logits, y, aims), aims)
        broken = _success(margin(logits, own), options)
        nearest.see(points, broken, running)
        won[running[broken]] = True
        running, points, gradient = running[~broken], points[~broken], gradient[~broken]
        if not len(running):
            break
        near, bound = x[running], radius[running].view(-1, *[1] * (x.ndim - 1))
        size = bound * (1 - number / (options.steps + 1))  # falls to nothing, to settle where the boundary is curved
        delta = (points + size * gradient.sign() - near).clamp(-bound, bound)
        points = (near + delta).clamp(0, 1)
    return won


def _gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_y - z_t (N,)."""
    return (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None]))[:, 0]


def _success(gap: Tensor, options: CarliniWagner) -> Tensor:
    """Which margins (N,) are those of images misclassified with enough confidence."""
    return (gap < 0) & (gap <= -options.confidence)
