"""Sizes of networks and generators: parameters, and operations of a forward pass."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from dfshield import registry
from dfshield.models.bundles import PLACES
from dfshield.options import CotrainOptions, GenerateOptions

Shape = tuple[int, int, int]


class Network(NamedTuple):
    """Size of a classifier."""

    flops: float
    """of one image's forward pass: two per multiplication of convolutions and linear layers"""
    parameters: int
    features: int
    """inputs of the last linear layer"""


def network(model: str, input_shape: Shape, classes: int, **own: Any) -> Network:
    """Size of a registered network, or of the user's own (`factory`, `arguments`)."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from dfshield.models.factory import build_network

    # what came as a graph may ask for values of its tensors when it runs
    device = torch.device("cpu" if own.get("factory") in PLACES else "meta")
    with device, FlopCounterMode(display=False) as counter, torch.no_grad():
        net = build_network(model, input_shape, classes, **own).eval()
        net(torch.zeros(1, *input_shape))
    linear = [layer.in_features for layer in net.modules() if isinstance(layer, nn.Linear)]
    return Network(
        float(counter.get_total_flops()),
        sum(value.numel() for value in net.state_dict().values()),
        linear[-1] if linear else 0,
    )


def forward_flops(build: Callable[[], Any], *shapes: tuple[int, ...]) -> float:
    """Operations of a forward pass of the network that `build` gives, on inputs of these shapes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        build().eval()(*(torch.zeros(shape) for shape in shapes))
    return float(counter.get_total_flops())


def generator_flops(options: CotrainOptions | GenerateOptions, input_shape: Shape, classes: int) -> float:
    """Operations of one image's forward pass through a method's generator."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dfshield.models.generators import GdfqGenerator, Unconditional

    zeros, ones = torch.zeros(input_shape[0]), torch.ones(input_shape[0])
    latent = options.latent or 64  # the linear layer that depends on it hardly counts
    with torch.device("meta"):
        if isinstance(options, CotrainOptions):
            asks = SimpleNamespace(mean=zeros, std=ones)  # all that a generator's construction asks of the teacher
            method = SimpleNamespace(options=options, shape=input_shape, classes=classes, teacher=asks)
            made = registry.BASELINES[options.method].load().build(method)  # type: ignore[attr-defined]
        else:
            made = GdfqGenerator(latent, input_shape, zeros.tolist(), ones.tolist(), Unconditional(), options.width)
        n = 2 * classes  # one generator wants all classes equally often, and BatchNorm more than one image of each
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made.raw(torch.zeros(n, latent), torch.arange(n) % classes)
    return float(counter.get_total_flops()) / n
