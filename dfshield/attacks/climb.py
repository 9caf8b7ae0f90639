"""Steps of any lengths up any gradient, with a record of the best point: what adaptive attacks share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfshield.attacks.base import clearly_wrong, margin
from dfshield.core.lp import project, step
from dfshield.core.threat import Threat

Gradient = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``(x_adv, rows, number) -> (logits, gradient)`` at the points (n,C,H,W) of images `rows` (n,), for step `number`."""


class Climbed(NamedTuple):
    """The best points of a climb, one for each image."""

    x_adv: Tensor
    """(N,C,H,W)."""
    gap: Tensor
    """Largest other logit minus that of the label (N,): positive where the point is misclassified."""
    label: Tensor
    """The class of the point (N,)."""
    fell: Tensor
    """After how many steps an image was clearly misclassified (N,); more than there are steps if it was not."""


def climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    sizes: Sequence[float],
    gradient: Gradient,
    precision: str,
) -> Climbed:
    """Projected steps of lengths `sizes` from `start` (N,C,H,W), each within ε of `x` and [0,1].

    An image takes no further step once it is clearly misclassified. Its best point is the one of the largest gap. Costs
    one call of `gradient` a step and one forward pass.
    """
    best, gap, label = start.clone(), torch.full_like(start[:, 0, 0, 0], -torch.inf), y.clone()
    fell = torch.full_like(y, len(sizes) + 1)
    rows, x_adv = torch.arange(len(x), device=x.device), start
    for number in range(len(sizes) + 1):
        if number < len(sizes):
            logits, direction = gradient(x_adv, rows, number)
        else:
            with torch.no_grad():
                logits = model(x_adv).float()
        now = -margin(logits, y[rows])
        better = now > gap[rows]
        best[rows[better]], gap[rows[better]] = x_adv[better], now[better]
        label[rows[better]] = logits[better].argmax(dim=1)
        clear = clearly_wrong(logits, y[rows], precision)
        fell[rows[clear]] = number
        rest = ~clear
        if number == len(sizes) or not rest.any():
            break
        rows = rows[rest]
        x_adv = project(x[rows], step(x_adv[rest], direction[rest], sizes[number], threat.norm), threat)
    return Climbed(best, gap, label, fell)
