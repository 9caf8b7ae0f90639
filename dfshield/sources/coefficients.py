"""How the loss coefficients of one synthesis batch are drawn.

Each function takes the base weights of the class, feature and prior terms, a generator and options, and returns a
tensor of shape (3,) in that order.
"""

import torch

from dfshield.options.sources import Inversion


def fixed(base: torch.Tensor, generator: torch.Generator, options: Inversion) -> torch.Tensor:
    """The base weights themselves (Eq 6)."""
    return base.clone()


def dss(base: torch.Tensor, generator: torch.Generator, options: Inversion) -> torch.Tensor:
    """Diversified sample synthesis: base times (U(0,1) + shift), once per batch (Eq 8).

    With ``randomise="class-feature"`` the prior keeps its base weight, as in the released code.
    """
    draws = torch.rand(3, generator=generator, dtype=torch.float64) + options.shift
    if options.randomise == "class-feature":
        draws[2] = 1.0
    return base * draws


def linear(base: torch.Tensor, generator: torch.Generator, options: Inversion) -> torch.Tensor:
    """Class weight u + shift and feature weight 1 + shift - (class weight), prior unchanged (released code)."""
    drawn = torch.rand((), generator=generator, dtype=torch.float64) + options.shift
    return base * torch.stack([drawn, 1 + options.shift - drawn, torch.ones((), dtype=torch.float64)])
