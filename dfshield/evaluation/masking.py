"""Signs that an attack's figure may mislead."""

import torch
from torch import Tensor, nn

from dfshield.attacks.base import input_gradient
from dfshield.core.rng import seeded

SQUARE_POINTS = 0.002
"""Share of images that Square may break after the white-box attacks without suspicion (Croce and Hein 2020)."""


def gradient_masking_checks(model: nn.Module, victim: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Flags that outputs and gradients on images `x` (N,C,H,W) with labels `y` (N,) raise against any verdict.

    ``randomised``: two forward passes of `model` differ. ``softmax-outputs``: it gives probabilities instead of logits,
    which flattens the losses. ``zero-gradients``: the cross entropy of `victim`, which gradients go through, has no
    input gradient for some image (Croce and Hein 2020).
    """
    flags = []
    few = x[:32]  # a random layer shows in any images
    with torch.no_grad(), seeded(0, x.device):
        first, second = model(few).float(), model(few).float()
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4):
        flags.append("randomised")
    unit = first.min() >= -1e-5 and first.max() <= 1 + 1e-5
    if unit and torch.allclose(first.sum(dim=1), torch.ones_like(first[:, 0]), atol=1e-4):
        flags.append("softmax-outputs")
    _, gradient = input_gradient(victim, x, y)
    if (gradient.flatten(1) == 0).all(dim=1).any():
        flags.append("zero-gradients")
    return flags
