"""Square (Andriushchenko et al. 2020, Algorithms 1 and 2) within l∞: random search with squares, on scores alone.

Differs from the publication:

- all images of a chunk try the same squares, as in the authors' AutoAttack;
- a square that would change nothing in an image, or that the image has refused since it last changed, is not asked of
  the model again, whose answer is known; a model that draws is asked every time.
"""

import math

import torch
from torch import Tensor, nn

from dfshield.attacks.base import MISCLASSIFICATION_MARGIN, differentiable, frozen, margin
from dfshield.attacks.inference import forward_only
from dfshield.core.threat import Threat

SHARE = 0.8
"""Share of the pixels in the first squares."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share is halved (Sec 5), for any number of queries in all."""
WORTH = 0.95
"""Share of the images that need an answer above which the others are asked, too: it saves a copy."""


def share(query: int) -> float:
    """Share of the pixels in the square of `query`, counted from 0."""
    return SHARE / 2 ** sum(query > limit for limit in HALVED_AFTER)


def side(query: int, height: int, width: int) -> int:
    """Side of the square of `query`, in pixels."""
    return min(max(round(math.sqrt(share(query) * height * width)), 1), height, width)


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    queries: int,
    generator: torch.Generator,
    clear: float = MISCLASSIFICATION_MARGIN["fp32"],
) -> Tensor:
    """Lower the margin of `x` (N,C,H,W) by random squares of ±ε; images within ε and [0,1], each at its least margin.

    The start is stripes of ±ε. An image stops once its margin is below -`clear` times its largest logit. At most
    `queries` + 2 forward passes an image.
    """
    n, channels, height, width = x.shape
    device = generator.device
    draws = torch.rand((queries, 2 + channels), generator=generator, device=device).cpu()
    stripes = (torch.rand((n, channels, 1, width), generator=generator, device=device) < 0.5).to(x)
    result = (x + threat.eps * (1 - 2 * stripes)).clamp(0, 1)
    index = torch.arange(n, device=x.device)
    with frozen(model), torch.no_grad():
        logits = differentiable(forward_only(model, x))
        low, high = (x - threat.eps).clamp_min(0), (x + threat.eps).clamp_max(1)
        point, tried = result.clone(), {}  # type: Tensor, dict[tuple[object, ...], int]
        answers = logits(point)
        repeats = torch.equal(answers, logits(point))
        least = margin(answers, y)
        changed = torch.zeros(n, dtype=torch.long, device=x.device)
        done = least < -clear * answers.abs().amax(dim=1)
        for query in range(queries):
            if done.any():
                result[index[done]] = point[done]
                index, y, low, high, point, least, changed = (
                    values[~done] for values in (index, y, low, high, point, least, changed)
                )
            if not len(index):
                break
            size = side(query, height, width)
            top, left = int(draws[query, 0] * (height - size + 1)), int(draws[query, 1] * (width - size + 1))
            signs = draws[query, 2:] < 0.5
            where = (..., slice(top, top + size), slice(left, left + size))
            old = point[where].clone()
            # a step of 2ε reaches the border of the ball from anywhere within it
            new = torch.where(signs.to(x.device).view(-1, 1, 1), low[where], high[where])
            name = (size, top, left, *signs.tolist())
            ask = (new != old).flatten(1).any(dim=1) & (changed >= tried.get(name, 0)) | (not repeats)
            tried[name] = query + 1
            point[where] = new
            rows = ask.nonzero()[:, 0] if ask.float().mean() < WORTH else torch.arange(len(index), device=x.device)
            found, limit = torch.full_like(least, torch.inf), torch.zeros_like(least)
            if len(rows):
                answers = logits(point if len(rows) == len(index) else point[rows])
                found[rows] = margin(answers, y[rows])
                limit[rows] = -clear * answers.abs().amax(dim=1)
            better = found < least
            point[where] = torch.where(better.view(-1, 1, 1, 1), new, old)
            least = torch.where(better, found, least)
            changed[better] = query + 1
            done = better & (found < limit)
        result[index] = point
    return result
