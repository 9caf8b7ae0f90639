"""Options of the measures of what a defence leaves of an image."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dfshield.core.threat import ThreatText
from dfshield.options.common import Positive, StageOptions

Measure = Literal["ssim", "psnr", "lpips"]


class QualityOptions(StageOptions):
    """Compare what a classifier behind a defence sees with the clean images."""

    measures: tuple[Measure, ...] = Field(("ssim", "psnr"), min_length=1)
    """ssim: structural similarity; psnr: peak signal-to-noise ratio; lpips: distance of VGG16's features"""
    vgg16: str = ""
    """of lpips: file of torchvision's VGG16 weights"""
    lpips: str = ""
    """of lpips: file of the published weights of its channels (version 0.1, VGG16)"""
    threat: ThreatText = "linf:8/255"
    """threat model of the attacked images, NORM:EPS"""
    steps: Annotated[int, Field(ge=0)] = 40
    """steps of PGD on the bare network, whose images are purified, too; 0: clean images alone"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 0
    """only the first so many images; 0 for all"""
    batch: Positive = 250
    """images that are worked on together"""

    @model_validator(mode="after")
    def _weights_are_given(self) -> Self:
        missing = [name for name in ("vgg16", "lpips") if not getattr(self, name)]
        if "lpips" in self.measures and missing:
            raise ValueError(
                f"measures: lpips needs its published weights; give {', '.join(missing)}, the files of them"
            )
        return self
