"""FGSM (Goodfellow et al. 2015)."""

import torch
from torch import Tensor, nn

from dfshield.attacks.base import frozen, input_gradient
from dfshield.core.lp import project, step
from dfshield.core.threat import Threat
from dfshield.options import AttackOptions


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
) -> Tensor:
    """One step of length ε from the image itself (Goodfellow et al. 2015); for l2 along the unit gradient."""
    with frozen(model):
        return project(x, step(x, input_gradient(model, x, y)[1], threat.eps, threat.norm), threat)
