"""Options of defences that are fitted before they defend."""

from typing import Annotated

from pydantic import Field, model_validator

from dfshield.options.common import DefenceName, Positive, Share
from dfshield.options.defences import DefendOptions

PositiveNumber = Annotated[float, Field(gt=0)]


class Quilting(DefendOptions):
    """Image quilting (Guo et al. 2018): the image rebuilt from patches of other images."""

    defence: DefenceName = "quilting"
    """defence"""
    patches: Positive = 2000
    """patches in the bank; published: a million"""
    patch: Positive = 5
    """side of a patch in pixels, as published; at most three eighths of the image's shorter side"""
    neighbours: Positive = 1
    """nearest patches of the bank, of which one is drawn; 1, as in the published code, draws nothing"""

    @model_validator(mode="after")
    def _bank_has_the_neighbours(self) -> "Quilting":
        if self.neighbours > self.patches:
            raise ValueError(
                f"neighbours {self.neighbours}: the bank has {self.patches} patches; use neighbours <= {self.patches}"
            )
        return self

    def fitting_passes(self, images: int) -> float:
        """None: patches are cut out."""
        return 0


class Thermometer(DefendOptions):
    """Thermometer encoding (Buckman et al. 2018): the network sees which levels a pixel exceeds."""

    defence: DefenceName = "thermometer"
    """defence"""
    levels: Annotated[int, Field(ge=2, le=256)] = 16
    """levels of a pixel's channel, as published"""
    epochs: Annotated[int, Field(ge=0)] = 5
    """passes over the training set, in which the read-out of the code is fitted; 0 keeps the quantised image"""
    batch: Positive = 50
    """images per mini-batch"""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate"""

    def fitting_passes(self, images: int) -> float:
        """The teacher's answers, and a gradient of the network's input in every epoch."""
        return images * (1 + 2 * self.epochs)


class MixupInference(DefendOptions):
    """Mixup inference (Pang et al. 2020): mean logits over mixtures of the image with others."""

    defence: DefenceName = "mixup-inference"
    """defence"""
    share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """share of the image in a mixture (λ); published: 0.5 to 0.6"""
    mixtures: Positive = 10
    """mixtures of each image; published: 30"""
    pool: Positive = 500
    """images to mix with, or as many as the training set has"""

    @property
    def passes(self) -> int:
        """Mixtures of an image."""
        return self.mixtures

    def fitting_passes(self, images: int) -> float:
        """None: images are kept."""
        return 0


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
