"""Options of randomised smoothing: the defence, and the certificates of the smoothed classifier."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.options.common import DefenceName, Positive, StageOptions
from dfshield.options.defences import DefendOptions

NoiseName = Literal["gaussian", "laplace", "uniform"]
Sigma = Annotated[float, Field(gt=0)]


class Smoothing(DefendOptions):
    """Randomised smoothing (Cohen et al. 2019): the class that most noisy copies vote for."""

    defence: DefenceName = "smoothing"
    """defence"""
    distribution: NoiseName = "gaussian"
    """distribution of the noise, independent for every pixel"""
    sigma: Sigma = 0.25
    """standard deviation of the noise, in units of the range of a pixel, whatever its distribution"""
    votes: Positive = 100
    """noisy copies of an image that vote; published: 100 to 10,000"""
    crafting: Positive = 8
    """noisy copies in one pass of what adaptive attacks are crafted on; published with SmoothAdv: 1 to 8"""

    @property
    def passes(self) -> int:
        """Noisy copies in one pass of the surrogate."""
        return self.crafting

    @property
    def verdict_passes(self) -> int:
        """Noisy copies of an image that is judged."""
        return self.votes


class CertifyOptions(StageOptions):
    """Certify radii within which the vote of noisy copies cannot change."""

    distribution: NoiseName = "gaussian"
    """distribution of the noise: gaussian certifies l2 radii, laplace and uniform l1 radii"""
    sigma: Sigma = 0.25
    """standard deviation of the noise, in units of the range of a pixel, whatever its distribution"""
    n0: Positive = 100
    """noisy copies that choose the class"""
    n: Positive = 10_000
    """further noisy copies that bound its probability; published: 100,000"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """largest probability that the radius of an image is wrong"""
    radii: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    """radii of the curve, in units of the range of a pixel"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 0
    """certify only the first so many images; 0 for all"""
    batch: Positive = 500
    """noisy copies that go through the network together"""

    @property
    def passes(self) -> int:
        """Noisy copies of an image."""
        return self.n0 + self.n

    purified: Literal["vote", "distance"] = "vote"
    """behind a diffusion model: noisy copies are purified, then vote; or the bare radius less the purification's way"""
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """of `distance`: the probability that purification leads an image farther"""
    score: Annotated[float, Field(ge=0)] = 0.0
    """of `distance`: twice a bound on the norm of the diffusion model's score; 0 gives the largest possible radius"""
