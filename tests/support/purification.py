"""Tiny purifications: what they are fitted on, and denoisers with a say."""

import torch
from support.attacked import key, network
from torch import Tensor

from dfshield import registry
from dfshield.defences.fitted import Fitting
from dfshield.models.unet import UNet
from dfshield.options import DefendOptions

NAMES = ("diffpure", "distribution-transfer")
TINY = {"width": 8, "sampling_steps": 3, "steps": 2, "batch": 4}
SHAPE = (1, 6, 5)


def given(n: int = 12, shape=SHAPE, seed: int = 0, x: Tensor | None = None) -> Fitting:
    """A network and random images to fit on."""
    net = network(3, shape)
    x = torch.rand((n, *shape), generator=key(5)) if x is None else x
    return Fitting(net, net, x, torch.zeros(len(x), dtype=torch.int64), 3, "linf:8/255", key(seed))


def options(name: str, **values):
    return DefendOptions.of(defence=name, **(TINY | values))


def defence(name: str, tensors=None, **values):
    return registry.DEFENCES[name].load()(options(name, **values), tensors)


def lively(channels: int = 1, width: int = 8, seed: int = 0) -> UNet:
    """A U-Net in which every weight has a say; a new one ends in zeros."""
    torch.manual_seed(seed)
    denoiser = UNet(channels, width)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return denoiser


def kept(denoiser: UNet) -> dict[str, Tensor]:
    """What a fit that came to `denoiser` would keep."""
    return {f"denoiser.{name}": value.clone() for name, value in denoiser.state_dict().items()}


def nothing(like: Tensor) -> Tensor:
    return torch.zeros_like(like)
