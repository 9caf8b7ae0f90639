"""Options of attacks that follow the model's gradients."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.core.threat import FractionText
from dfshield.options.attacks import AttackOptions
from dfshield.options.common import AttackName, Positive


class MiFgsm(AttackOptions):
    """FGSM with momentum (Dong et al. 2018)."""

    attack: AttackName = "mi-fgsm"
    """attack"""
    steps: Positive = 10
    """steps, each of length ε/steps"""
    momentum: Annotated[float, Field(ge=0, le=2)] = 1.0
    """decay factor of earlier gradients"""


class Transfer(AttackOptions):
    """PGD on another model, whose perturbations are tried on the attacked one (Papernot et al. 2017)."""

    attack: AttackName = "transfer"
    """attack"""
    steps: Positive = 10
    """steps"""
    restarts: Positive = 1
    """restarts from fresh random starts; what breaks the surrogate is kept"""
    l2_step: FractionText = "15/255"
    """length of a step for l2 threats (l∞ uses ε/4)"""


class Tpgd(AttackOptions):
    """PGD away from the model's own output on the clean image: modified PGD (a) of Tables 21 and 22."""

    attack: AttackName = "tpgd"
    """attack"""
    steps: Positive = 10
    """steps"""
    l2_step: FractionText = "15/255"
    """length of a step for l2 threats (l∞ uses ε/4)"""


class ModifiedPgd(Tpgd):
    """PGD away from the teacher's output on the clean image: modified PGD (b) and (c) of Tables 21 and 22."""

    attack: AttackName = "modified-pgd"
    """attack"""
    objective: Literal["teacher", "both"] = "teacher"
    """outputs on the clean image to move away from: the teacher's (b), or the teacher's and the model's own (c)"""


class Latent(AttackOptions):
    """Towards the penultimate features of an image of another class (Sabour et al. 2016)."""

    attack: AttackName = "latent"
    """attack"""
    iterations: Positive = 100
    """L-BFGS iterations at most"""
    history: Positive = 5
    """steps that L-BFGS remembers"""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """relative decrease of the distance below which an image is finished"""


class MarginDecomposition(AttackOptions):
    """Margin decomposition (Ma et al. 2020): one of the margin's two terms first, then the margin."""

    attack: AttackName = "md"
    """attack"""
    steps: Annotated[int, Field(ge=2)] = 50
    """steps of a restart; half of them are of the first stage"""
    restarts: Positive = 2
    """restarts; they take the terms in turn"""


class MinimumMargin(AttackOptions):
    """Minimum margin (Gao et al. 2022): targets one after the other, the nearest class first."""

    attack: AttackName = "mm"
    """attack"""
    targets: Positive = 3
    """target classes at most; 9 is MM+"""
    steps: Positive = 20
    """steps a target; 100 is MM+"""
