"""Options of defences that purify images by a diffusion model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dfshield.options.common import DefenceName, Positive, Weight
from dfshield.options.defences import DefendOptions
from dfshield.options.defences_random import PositiveShare


class Purification(DefendOptions):
    """What every defence by a diffusion model has: the process, the model and its training."""

    for_crafting = ("gradient",)

    timesteps: Annotated[int, Field(ge=50)] = 1000
    """noise levels of the whole process; published: 1000"""
    time: PositiveShare = 0.1
    """time t* up to which images are noised, as a share of the whole process"""
    sampling_steps: Positive = 10
    """steps from there back to an image"""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """channels of the U-Net at full size, a multiple of 8"""
    steps: Positive = 4000
    """optimiser steps of the fit"""
    batch: Positive = 128
    """images of one step; published: 128"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """learning rate of Adam; published: 2e-4, for a large network and many steps"""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """decay of the moving average of the weights; published: 0.9999"""
    trained_time: PositiveShare = 1.0
    """noise levels up to this share of the process are trained on, at least up to `time`; published: all"""
    gradient: Literal["full", "constant", "bpda"] = "full"
    """what an adaptive attack goes back through"""

    def fitting_passes(self, images: int) -> float:
        """None: the classifier has no part in the fit."""
        return 0

    def network_passes(self, images: int) -> float:
        """Updates of the U-Net."""
        return 3 * self.steps * self.batch

    @model_validator(mode="after")
    def _the_path_is_trained(self) -> Self:
        if self.trained_time < self.time:
            raise ValueError(f"trained_time {self.trained_time} is below time {self.time}: nothing is trained there")
        if self.sampling_steps > round(self.time * self.timesteps):
            raise ValueError(
                f"sampling_steps {self.sampling_steps} is above the {round(self.time * self.timesteps)} noise levels "
                f"up to time {self.time}"
            )
        return self


class DiffPure(Purification):
    """DiffPure (Nie et al. 2022): images are noised, and denoised by a diffusion model."""

    defence: DefenceName = "diffpure"
    """defence"""
    time: PositiveShare = 0.1
    """time t* up to which images are noised, as a share of the whole process; published: 0.1 for linf, 0.075 for l2"""
    sampling_steps: Positive = 10
    """steps from there back to an image; published: 100, of 1/1000 each"""
    sampler: Literal["ancestral", "ddim", "euler"] = "ancestral"
    """how a step is made; published: euler, which few steps do not suffice for"""
    gradient: Literal["full", "bpda"] = "full"
    """what an adaptive attack goes back through: all steps, or the identity in their place"""


class DistributionTransfer(Purification):
    """Distribution transfer: DiffPure whose way back is guided by the input and the classifier."""

    defence: DefenceName = "distribution-transfer"
    """defence"""
    time: PositiveShare = 0.47
    """time up to which images are noised, as a share of the whole process; published: 470 steps, of 1000 presumably"""
    distance: Literal["mse", "ssim"] = "mse"
    """distance of the image to the input: mean squared error, or one minus the structural similarity"""
    coordination: Weight = 0.01
    """factor λ of one part of the guidance, a convention; not stated in the publication"""
    coordinated: Literal["output", "distance"] = "output"
    """the part that λ stands before; not stated in the publication"""
    scale: Weight = 300.0
    """factor s of the guidance, a convention; not stated in the publication"""
    gradient: Literal["full", "constant", "bpda"] = "full"
    """what an adaptive attack goes back through: all; all but the guidance, as a constant; the identity"""

    @property
    def passes(self) -> int:
        """The classifier sees the result and, for the guidance, the input and the image of every step but the last."""
        return self.sampling_steps + 1 if self.scale else 1
