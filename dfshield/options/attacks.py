"""Options of attacks. What one attack alone reads is in the class of that attack."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import BallText, FractionText, parse_threat
from dfshield.options.common import AttackName, Positive, Precision, StageOptions
from dfshield.options.defences import DefendOptions
from dfshield.registry.attacks import EVERYWHERE

GUIDE = "guide"
"""The need that the evaluation set meets; all others are checkpoints."""


Assignment = Annotated[str, Field(pattern=r"^[a-z]\w*=\S+$")]
"""An option and its value, such as ``backward=tanh``."""


class AttackOptions(StageOptions):
    """Attack a model on a real evaluation set and keep a ledger of every image."""

    entries = ("attack", registry.ATTACKS)
    neutral: ClassVar[dict[str, Any]] = {
        **{"eot": 1, "adaptive": True, "differences": 0, "difference_step": 0.01},
        "through": [],
    }

    attack: AttackName = "autoattack"
    """attack"""
    threat: BallText = "linf:8/255"
    """threat model, NORM:EPS"""
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
    eot: Positive = 1
    """forward passes that the crafting model's logits are averaged over (EOT), for models and defences that draw"""
    differences: Annotated[int, Field(ge=0)] = 0
    """random directions of differences in place of gradients, exact from the number of pixels on; 0: gradients"""
    difference_step: Annotated[float, Field(gt=0, le=1)] = 0.01
    """length of a finite difference, in pixel values"""
    adaptive: bool = True
    """with a defence: craft through the defence, not on the bare network"""
    through: tuple[Assignment, ...] = ()
    """with a defence: options, NAME=VALUE, that it has for crafting in place of its own, such as backward=tanh"""

    def check_needs(self, others: Collection[str] = ()) -> None:
        """Raise InputError for a threat model or further checkpoints `others` that the attack does not work with."""
        name, entry = self.attack, registry.ATTACKS[self.attack]
        if parse_threat(self.threat).norm not in entry.norms:
            raise InputError(f"attack {name} works within {', '.join(entry.norms)}, but threat is {self.threat}")
        if entry.replaces and parse_threat(self.threat) != parse_threat(EVERYWHERE):
            raise InputError(f"attack {name} is bounded by no ε, but threat is {self.threat}; give {EVERYWHERE}")
        needed = [need for need in entry.needs if need != GUIDE]
        for need in needed:
            if need not in others:
                raise InputError(f"attack {name} needs a {need}; give --other {need}=CHECKPOINT")
        for other in others:
            if other not in needed:
                raise InputError(
                    f"attack {name} makes no use of another model as its {other}; leave --other {other} out"
                )

    def crafted_through(self, defence: DefendOptions | None) -> DefendOptions | None:
        """The options of a defence as crafting has them; its own but for `through`.

        Raises InputError where `through` has nothing to change: no defence, an attack that does not know of it, or
        another option than those that the defence leaves to an attack.
        """
        if not self.through:
            return defence
        if defence is None or not self.adaptive:
            why = "there is no defence" if defence is None else "the attack is crafted on the bare network"
            raise InputError(f"through {' '.join(self.through)}: {why}; leave it out")
        return defence.crafted(dict(pair.split("=", 1) for pair in self.through))


class Pgd(AttackOptions):
    """Projected gradient descent (Madry et al. 2018)."""

    attack: AttackName = "pgd"
    """attack"""
    steps: Positive = 10
    """steps"""
    restarts: Positive = 1
    """restarts from fresh random starts"""
    l2_step: FractionText = "15/255"
    """length of a step for l2 threats (l∞ and l1 use ε/4)"""


class AutoAttack(AttackOptions):
    """AutoAttack (Croce and Hein 2020)."""

    version: Literal["standard", "paper", "rand"] = "standard"
    """target classes of APGD-T and FAB-T: standard is at most 9, paper all C-1; rand: for models that draw, EOT 20"""
