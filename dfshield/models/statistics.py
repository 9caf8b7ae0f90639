"""The statistics that images are matched to (Eq 4): which layers have them, and what a network without any is for."""

import torch
from torch import nn

from dfshield.core.errors import InputError

NONE = "no BatchNorm2d layer with running statistics"
"""What is said of a network that has nothing to match."""


def matched_layers(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers of `net` to whose running statistics images are matched, in order."""
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]


def other_statistics(layer: nn.Module) -> bool:
    """Whether a layer has running statistics, as BatchNorm has, and is no BatchNorm2d, whose inputs are matched."""
    return not isinstance(layer, nn.BatchNorm2d) and isinstance(getattr(layer, "running_mean", None), torch.Tensor)


def need_statistics(net: nn.Module, who: str, remedy: str) -> None:
    """Raise InputError if `net` has nothing to match, for what cannot do without: `who`, with the remedy."""
    if not matched_layers(net):
        raise InputError(f"{who}: the network has {NONE}, and it works by matching them; {remedy}")
