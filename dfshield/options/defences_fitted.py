"""Options of defences that are fitted on a training set."""

from typing import Annotated

from pydantic import Field

from dfshield.options.common import DefenceName, Positive, Share
from dfshield.options.defences import DefendOptions

PositiveNumber = Annotated[float, Field(gt=0)]


class Mixture(DefendOptions):
    """MixedNUTS (Bai et al. 2024): the probabilities of teacher and student mixed, the student's logits sharpened."""

    defence: DefenceName = "mixture"
    """defence"""
    images: Positive = 500
    """training images that the mixture is fitted on, the last ones; published: 1,000 real ones, clean and attacked"""
    keep: Annotated[Share, Field(gt=0)] = 0.985
    """share of the student's accuracy under attack that the mixture has to keep on those images, as published (β)"""
    steps: Positive = 20
    """steps of the PGD that attacks the student for the fit, each of ε/4; published: AutoAttack"""
    scales: Annotated[tuple[PositiveNumber, ...], Field(min_length=1)] = (0.1, 0.3, 0.6, 1.0, 2.0, 5.0, 10.0)
    """values of s that are tried; published: 5 for CIFAR-10, 0.61 for CIFAR-100"""
    shifts: Annotated[tuple[float, ...], Field(min_length=1)] = (-2.5, -2.1, -1.7, -1.4, -1.1, -0.8, -0.4, 0.0)
    """values of c that are tried; published: -1.1 for CIFAR-10, -2.14 for CIFAR-100"""
    powers: Annotated[tuple[PositiveNumber, ...], Field(min_length=1)] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """values of p that are tried; published: 4 for CIFAR-10, 3.57 for CIFAR-100"""

    @property
    def passes(self) -> int:
        """Two networks."""
        return 2

    def fitting_passes(self, images: int) -> float:
        """Student and teacher on clean images, the attack on the student, the student on what it finds."""
        return min(images, self.images) * (2 + 2 * self.steps + 1)
