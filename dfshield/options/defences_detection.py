"""Options of defences that detect attacked images."""

from typing import Annotated

from pydantic import Field

from dfshield.options.common import DefenceName, Positive
from dfshield.options.defences import DefendOptions

RADII = (2, 4, 6, 8, 10, 12, 14, 16)
"""Radii of the low-pass filters, in pixels of a spectrum of 32 x 32."""


class Dad(DefendOptions):
    """DAD (Nayak et al. 2022): images that a detector flags are low-pass filtered."""

    defence: DefenceName = "dad"
    """defence"""
    steps: Positive = 10
    """steps of the PGD attack whose images the detector learns to tell"""
    epochs: Positive = 40
    """passes of the detector's training over the clean and attacked images"""
    batch: Positive = 64
    """images of a mini-batch; a convention"""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """learning rate of RMSprop"""

    @property
    def passes(self) -> int:
        """The image itself and its versions at all radii."""
        return 1 + len(RADII)

    def fitting_passes(self, images: int) -> float:
        """Answers, two attacks with their verdicts, logits of clean and at most twice as many attacked images."""
        return images * (1 + 2 * (2 * self.steps + 1) + 3)
