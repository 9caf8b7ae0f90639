"""The diffusion process: noise levels, and steps from a noisy image back to an image.

Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020; Song et al., Score-Based Generative Modeling through
Stochastic Differential Equations, ICLR 2021 (VP-SDE); Song et al., Denoising Diffusion Implicit Models, ICLR 2021.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

LOWEST, HIGHEST = 0.1, 20.0
"""β of the VP-SDE at its start and its end; with 1000 noise levels, 1e-4 and 0.02 of Ho et al."""
PUBLISHED_LEVELS = 1000
"""Noise levels in whose units a denoiser is told the time."""


class Process:
    """Noise levels 0..T of a variance-preserving process; level 0 is the image itself.

    x_i = √ᾱ_i x_0 + √(1-ᾱ_i) e with e ~ N(0, I) and ᾱ_i the product of 1 - β_j for j up to i (Ho et al., Eq 4); the T
    values β_j rise linearly from 0.1/T to 20/T. Images are in [-1,1].
    """

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps
        self.beta = torch.linspace(LOWEST, HIGHEST, timesteps, dtype=torch.float64) / timesteps
        self.kept = torch.cat((torch.ones(1, dtype=torch.float64), (1 - self.beta).cumprod(0)))
        """ᾱ by level, (T+1,), float64"""

    def noised(self, x: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
        """Images (N,C,H,W) at their `levels` (N,) with `noise` (N,C,H,W)."""
        kept = self.kept[levels.cpu()].to(x).view(-1, 1, 1, 1)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise

    def time(self, levels: Tensor) -> Tensor:
        """What a denoiser is told of levels (N,), in units of a process of 1000 levels."""
        return levels * (PUBLISHED_LEVELS / self.timesteps)

    def path(self, share: float, steps: int) -> list[int]:
        """Levels from `share` of the process down to 0, all different: one more than `steps`, evenly spaced."""
        top = round(share * self.timesteps)
        return [round(top * (steps - i) / steps) for i in range(steps + 1)]


def purification_distance(process: Process, share: float, pixels: int, delta: float, score: float) -> float:
    """How far purification from level `share` of the process may lead an image from where it was, besides its
    perturbation: √(e^2γ - 1) C_δ + γ C_s, with probability 1 - `delta` (Nie et al. 2022, Theorem 3.2).

    γ is the integral of β/2 up to there, so e^-2γ = ᾱ; C_δ² = 2d + 4√(d log 1/δ) + 4 log 1/δ for d = `pixels` values of
    an image; C_s = `score` is twice a bound on the norm of the score, for images in [-1,1]. The distance is in l2, in
    units where pixels lie in [0,1], half of those of the theorem.
    """
    kept, rare = float(process.kept[process.path(share, 1)[0]]), math.log(1 / delta)
    noise = math.sqrt(2 * pixels + 4 * math.sqrt(pixels * rare) + 4 * rare)
    return (math.sqrt(1 / kept - 1) * noise - math.log(kept) / 2 * score) / 2


class Step(NamedTuple):
    """What a step of the way back draws the next image from: N(`mean`, `deviation`² I)."""

    mean: Tensor
    deviation: float


def predicted(x: Tensor, noise: Tensor, kept: float) -> Tensor:
    """The image x̂_0 (N,C,H,W) of which `x`, at a level with ᾱ = `kept`, is a version with `noise`."""
    return (x - (1 - kept) ** 0.5 * noise) / kept**0.5


def ancestral(x: Tensor, noise: Tensor, now: float, then: float) -> Step:
    """From ᾱ = `now` to ᾱ = `then`, by q(x_s | x_t, x̂_0) (Ho et al., Eq 6 and 7, for levels that need not be next)."""
    variance = (1 - then) / (1 - now) * (1 - now / then)
    return _towards(x, noise, now, then, variance)


def ddim(x: Tensor, noise: Tensor, now: float, then: float) -> Step:
    """The same without noise: DDIM with η = 0, a step of the probability flow."""
    return _towards(x, noise, now, then, 0.0)


def _towards(x: Tensor, noise: Tensor, now: float, then: float, variance: float) -> Step:
    left = max(1 - then - variance, 0.0) ** 0.5
    return Step(then**0.5 * predicted(x, noise, now) + left * noise, variance**0.5)


def euler(x: Tensor, noise: Tensor, now: float, then: float) -> Step:
    """A step of Euler and Maruyama of the reverse VP-SDE (Nie et al. 2022, Eq 4), whose score is -noise / √(1-ᾱ).

    β integrated over the step is log(`then` / `now`). The image at the end keeps the noise of the last step.
    """
    area = float(torch.tensor(then / now, dtype=torch.float64).log())
    return Step((1 + area / 2) * x - area / (1 - now) ** 0.5 * noise, area**0.5)


SAMPLERS: dict[str, Callable[[Tensor, Tensor, float, float], Step]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
}

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noisy images (N,C,H,W) and their times (N,) to the noise in them."""
Draw = Callable[[Tensor], Tensor]
"""Standard normal noise in the form of an image batch (N,C,H,W)."""
Guide = Callable[[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]], tuple[Tensor, Tensor]]
"""Of a noisy x_t and a function from it to noise and x̂_0: the noise, and the gradient that the way back descends."""


def reverse(
    denoise: Denoiser,
    x: Tensor,
    process: Process,
    path: list[int],
    sampler: str,
    draw: Draw,
    guide: Guide | None = None,
) -> Tensor:
    """From noisy images `x` (N,C,H,W) at level ``path[0]`` through all levels of `path` to its last.

    With a `guide`, the mean of a step is moved by its gradient times the variance of the step, to lower values
    (Dhariwal and Nichol 2021, Algorithm 1); a step without variance has no guidance.
    """
    for level, next_level in pairwise(path):
        now, then = float(process.kept[level]), float(process.kept[next_level])
        time = process.time(torch.full((len(x),), level, device=x.device, dtype=x.dtype))

        def look(noisy: Tensor, time: Tensor = time, now: float = now) -> tuple[Tensor, Tensor]:
            noise = denoise(noisy, time)
            return noise, predicted(noisy, noise, now)

        if guide is None or then == 1:
            mean, deviation = SAMPLERS[sampler](x, denoise(x, time), now, then)
        else:
            noise, gradient = guide(x, look)
            mean, deviation = SAMPLERS[sampler](x, noise, now, then)
            mean = mean - deviation**2 * gradient
        x = mean + deviation * draw(x) if deviation else mean
    return x
