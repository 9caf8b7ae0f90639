"""Attacks towards several target classes, which share the images that still stand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dfshield.options.attacks import AttackOptions


def attack_targets(
    targets: int,
    run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    options: AttackOptions,
) -> Tensor:
    """Attack `x` (N,C,H,W) towards its `targets` likeliest wrong classes; what is broken is not attacked again.

    `run` takes images, labels and targets and returns perturbed images and which of them are broken. The runner-up
    class is tried first, because it succeeds most often. The remaining targets are batched until the chunk is full:
    small batches take as much time as large ones. With `options.reference` all targets go one by one.
    """
    result = x.clone()
    logits = model(x)
    ranking = logits.sort(dim=1)[1].flip(1)
    alive = (logits.argmax(dim=1) == y).nonzero()[:, 0]
    rank = at_once = 1
    while rank <= targets and len(alive):
        ranks = ranking[alive, rank : min(rank + at_once, targets + 1)]
        n, k = ranks.shape
        x_adv, broken = run(x[alive].repeat(k, 1, 1, 1), y[alive].repeat(k), ranks.T.reshape(-1))
        x_adv, broken = x_adv.unflatten(0, (k, n)), broken.unflatten(0, (k, n))
        first = broken.int().argmax(dim=0)
        won = broken.any(dim=0)
        result[alive[won]] = x_adv[first, torch.arange(n, device=x.device)][won]
        alive = alive[~won]
        rank += k
        at_once = 1 if options.reference else max(1, options.chunk // max(1, len(alive)))
    return result
