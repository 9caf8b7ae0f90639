"""Options of defences that alter a network's activations."""

from typing import Annotated

from pydantic import Field

from dfshield.options.common import DefenceName
from dfshield.options.defences import DefendOptions


class ActivationPruning(DefendOptions):
    """Stochastic activation pruning (Dhillon et al. 2018): a random part of the activations stays."""

    defence: DefenceName = "activation-pruning"
    """defence"""
    samples: Annotated[float, Field(gt=0)] = 1.0
    """draws with replacement in a layer, as a multiple of its activations; the more, the fewer are pruned"""


class MeanSparse(DefendOptions):
    """MeanSparse (Amini et al. 2024): variations of a channel around its mean are blocked."""

    defence: DefenceName = "mean-sparse"
    """defence"""
    threshold: Annotated[float, Field(ge=0)] = 0.25
    """half the width of the blocked band, in standard deviations of the channel; 0 blocks nothing"""


class KWta(DefendOptions):
    """k-winners-take-all (Xiao et al. 2020): only the largest activations of a layer stay."""

    defence: DefenceName = "k-wta"
    """defence"""
    winners: Annotated[float, Field(gt=0, le=1)] = 0.2
    """share of a layer's activations that stay"""
