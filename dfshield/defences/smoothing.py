"""Randomised smoothing (Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, ICML 2019)."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dfshield.defences.defence import Defence, drawn_anew, drawn_for
from dfshield.options.defences_smoothing import NoiseName, Smoothing

TOGETHER = 500
"""Most noisy copies that go through a network at a time."""


class Noise(NamedTuple):
    """A distribution of noise, independent for every pixel, of mean zero and standard deviation one."""

    draw: Callable[[tuple[int, ...], torch.Generator], Tensor]
    """``(shape, random)`` to noise of that shape, float32."""
    norm: Literal["l1", "l2"]
    """The norm of the radii that it certifies."""
    radius: Callable[[float], float]
    """A lower bound p > 1/2 of the probability of the class to the certified radius, in standard deviations."""


def _laplace(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    u = 1 - 2 * torch.rand(shape, generator=random, dtype=torch.float64)  # in (-1, 1]
    size = -torch.log1p(-u.abs().clamp_max(1 - 2.0**-53))
    return (u.sign() * size / math.sqrt(2)).float()


def _normal_quantile(p: float) -> float:
    from scipy.special import ndtri  # not at the top: it takes long to import, and only a certificate needs it

    return float(ndtri(p))


NOISES: dict[NoiseName, Noise] = {
    "gaussian": Noise(lambda shape, random: torch.randn(shape, generator=random), "l2", _normal_quantile),
    "laplace": Noise(_laplace, "l1", lambda p: -math.log(2 * (1 - p)) / math.sqrt(2)),
    "uniform": Noise(
        lambda shape, random: math.sqrt(3) * (2 * torch.rand(shape, generator=random) - 1),
        "l1",
        lambda p: 2 * math.sqrt(3) * (p - 0.5),
    ),
}
"""With p_B <= 1 - p_A: Gaussian, Cohen et al. 2019, Eq 3, R = σ Φ⁻¹(p_A); Laplace of scale b = σ/√2 and uniform on
[-λ, λ], λ = √3 σ, Yang et al. 2020 (Randomized Smoothing of All Shapes and Sizes, ICML), R = -b log(2(1 - p_A)) and
R = 2λ(p_A - 1/2)."""


def noisy(
    x: Tensor, copies: int, noise: NoiseName, sigma: float, random: torch.Generator, most: int
) -> Iterator[Tensor]:
    """`copies` noisy versions of an image (1,C,H,W), in batches of at most `most`; pixels leave [0,1].

    The draws are made on the CPU, by `random`, so that they are the same on every device.
    """
    for start in range(0, copies, most):
        shape = (min(most, copies - start), *x.shape[1:])
        yield x + sigma * NOISES[noise].draw(shape, random).to(x)


def vote(model: nn.Module, batches: Iterator[Tensor]) -> Tensor:
    """How many of the images in `batches` a model assigns to each class: (classes,) int64, on the CPU."""
    counts = torch.zeros((), dtype=torch.int64)
    for batch in batches:
        logits = model(batch)
        counts = counts + torch.bincount(logits.argmax(dim=1).cpu(), minlength=logits.shape[1])
    return counts


class Smoothed(nn.Module):
    """The vote of noisy copies; images (N,C,H,W) in [0,1] to the logarithms of shares of the votes (N,classes).

    The noise is drawn by the content of an image and the seed. Every class has a part of one vote more than it was
    given, all of them together one, so that logarithms are finite. Of classes with equal votes the first is the answer.
    """

    def __init__(self, model: nn.Module, options: Smoothing) -> None:
        super().__init__()
        self.model, self.options = model, options

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._logits(image) for image in x.split(1)])

    def _logits(self, image: Tensor) -> Tensor:
        options, random = self.options, drawn_for(image, self.options)
        votes = vote(self.model, noisy(image, options.votes, options.distribution, options.sigma, random, TOGETHER))
        return ((votes + 1 / len(votes)) / (options.votes + 1)).log()[None].to(image.device)


class SoftSmoothed(Smoothed):
    """The same, for gradients: the logarithm of the mean probabilities of a few copies (SmoothAdv, Salman et al. 2019).

    The noise is new at each call. The mean probability of a class is the share of votes where the network is certain.
    """

    def forward(self, x: Tensor) -> Tensor:
        options = self.options
        random = drawn_anew(options)
        found = []
        for _ in range(options.crafting):
            noise = NOISES[options.distribution].draw(tuple(x.shape), random).to(x)
            found.append(self.model(x + options.sigma * noise).log_softmax(dim=1))
        return torch.stack(found).logsumexp(dim=0) - math.log(options.crafting)


class RandomisedSmoothing(Defence[Smoothing]):
    """The class that most of the noisy copies of an image vote for (Cohen et al. 2019, Eq 1).

    ``dfshield certify`` gives the radii within which that class cannot change. Adaptive attacks are crafted on the mean
    probabilities (Salman et al., Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers, NeurIPS
    2019).
    Differs from the publication: the network was not trained with noise; there is no abstention, as an accuracy under
    attack knows none.
    """

    def protect(self, model: nn.Module) -> nn.Module:
        return Smoothed(model, self.options)

    def surrogate(self, model: nn.Module) -> nn.Module:
        return SoftSmoothed(model, self.options)
