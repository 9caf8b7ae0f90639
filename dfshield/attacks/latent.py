"""The latent attack: an image whose features are those of another one (Sabour et al. 2016)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.lbfgs import minimise
from dfshield.models.penultimate import Penultimate
from dfshield.options.attacks_gradients import Latent


def latent(problem: Problem, options: Latent) -> Tensor:
    """The image within ε whose penultimate features are nearest to its guide's (Sabour et al. 2016, Eq 1).

    ``problem.others["guide"]`` holds an image (N,C,H,W) of another class for each. Raises InputError for a network
    without a Linear layer that it calls as one.

    Differs from the publication:

    - L-BFGS is ours, of a whole chunk at once, with the same box of ε around the image, cut to [0,1];
    - iterations end at a relative decrease below `options.tolerance`; the publication does not state when.
    """
    model, x, _, threat, _, others = problem
    with frozen(model), _features(model) as features:
        with torch.no_grad():
            wanted = features(others["guide"])

        def distance(points: Tensor, rows: Tensor) -> Tensor:
            return (features(points.unflatten(1, x.shape[1:])) - wanted[rows]).square().sum(dim=1)

        low, high = ((x + side).clamp(0, 1).flatten(1) for side in (-threat.eps, threat.eps))
        found = minimise(distance, x.flatten(1), low, high, options.iterations, options.history, options.tolerance)
    return found.unflatten(1, x.shape[1:])


@contextlib.contextmanager
def _features(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Images (N,C,H,W) to penultimate features (N,D)."""
    watched = Penultimate(model)

    def features(x: Tensor) -> Tensor:
        model(x)
        return watched.features.float()

    try:
        yield features
    finally:
        watched.remove()
