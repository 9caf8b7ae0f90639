"""Options of what reads real data to judge: attacks and diversity; the named protocols."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from dfshield.options.common import AttackName, Compute, Features, Positive, Precision
from dfshield.threat import FractionText, ThreatText


class AttackOptions(Compute):
    """Attack a model on a real evaluation set and keep a ledger of every image."""

    attack: AttackName = "autoattack"
    """attack"""
    threat: ThreatText = "linf:8/255"
    """threat model, NORM:EPS"""
    steps: Positive = 10
    """PGD steps"""
    restarts: Positive = 1
    """PGD restarts from fresh random starts"""
    l2_step: FractionText = "15/255"
    """PGD step for l2 threats (l∞ uses ε/4)"""
    targets: Literal["standard", "paper"] = "standard"
    """AutoAttack target classes: standard is at most 9, paper is all C-1"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 0
    """attack only the first so many images; 0 for all"""
    chunk: Positive = 250
    """images attacked together; randomness is keyed by seed, attack and chunk"""
    precision: Precision = "fp32"
    """arithmetic of crafting (PGD, APGD), auto: bf16 on hardware that is faster in it; verdicts are always fp32"""
    reference: bool = False
    """craft as a reference library does, slowly: on the model as it is, every step for every image, no pre-filter"""


PROTOCOLS: dict[str, dict[str, Any]] = {
    "clean": {"attack": "clean"},
    "fgsm": {"attack": "fgsm"},
    "pgd10": {"attack": "pgd", "steps": 10},
    "pgd50x5": {"attack": "pgd", "steps": 50, "restarts": 5},
    "aa-standard": {"attack": "autoattack", "targets": "standard"},
    "aa-paper": {"attack": "autoattack", "targets": "paper"},
}
"""Evaluation protocols: the names that paths and tables use, and the attack options that each stands for."""
if TYPE_CHECKING:
    ProtocolName: TypeAlias = str
else:
    ProtocolName = Literal[tuple(PROTOCOLS)]


class DiversityOptions(Compute):
    """Compare a surrogate set with real images: how much of them it covers."""

    split: Literal["train", "dev", "test"] = "train"
    """part of the real data set"""
    features: Features = "teacher"
    """space of precision, recall, density and coverage; teacher: the input of its last linear layer"""
    neighbours: Positive = 5
    """nearest neighbours that set the radius of an image's ball (k)"""
    bin_features: Features = "pixels"
    """space of the bins of NDB and JSD"""
    bins: Annotated[int, Field(ge=2)] = 100
    """bins of NDB and JSD: k-means clusters of the real images (K)"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """significance level at which a bin counts as different"""
    sample: Annotated[int, Field(ge=0)] = 0
    """compare so many randomly drawn images of either set; 0 for all"""
    vgg16: str = ""
    """torchvision's VGG16 weights, for features vgg16; in a config below data_dir if not absolute"""

    @model_validator(mode="after")
    def _vgg16_has_weights(self) -> "DiversityOptions":
        if "vgg16" in (self.features, self.bin_features) and not self.vgg16:
            raise ValueError("features vgg16 need its weights, which are never downloaded: give vgg16, a .pth file")
        return self
