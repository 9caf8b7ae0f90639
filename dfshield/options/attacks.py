"""Options of attacks, and the named protocols."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from dfshield.core.threat import FractionText, ThreatText
from dfshield.options.common import AttackName, Positive, Precision, StageOptions


class AttackOptions(StageOptions):
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
