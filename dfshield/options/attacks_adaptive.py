"""Options of the attacks that adapt themselves to the model."""

from typing import Annotated

from pydantic import Field

from dfshield.options.attacks import AttackOptions
from dfshield.options.common import AttackName, Positive


class A3(AttackOptions):
    """Adaptive auto attack, A³ (Liu et al. 2022)."""

    attack: AttackName = "a3"
    """attack"""
    rounds: Annotated[int, Field(ge=1, le=13)] = 13
    """rounds on the survivors; published: 13"""
    restarts: Positive = 50
    """most restarts of a round; published: up to 50, in the last round"""
    least: Positive = 10
    """images that are never discarded as too hard, in each chunk; published: 100 of the whole set"""


class Automated(AttackOptions):
    """A search over attack programs (Yao et al. 2021)."""

    attack: AttackName = "automated"
    """attack"""
    attacks: Positive = 3
    """programs of the sequence, each searched on what those before it leave; published: 3"""
    trials: Positive = 16
    """programs tried in a search; published: 64"""
    base: Positive = 20
    """surviving images of a chunk that programs are tried on; published: 100"""
    budget: Annotated[int, Field(ge=20)] = 100
    """gradients an image that one program may take (two forward passes each); published: 0.5 to 3 s an image"""
