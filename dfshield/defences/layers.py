"""How layers of a defence are put into a copy of a network."""

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from dfshield.models.classifier import Classifier

Layer = TypeVar("Layer", bound=nn.Module)


def with_layers(model: nn.Module, kind: type[Layer], make: Callable[[Layer], nn.Module]) -> nn.Module:
    """A frozen copy of `model` in eval mode, with ``make(layer)`` behind each of its layers of type `kind`.

    A layer that the network uses in several places is followed by one and the same new layer in all of them. `model`
    stays as it is; without a layer of that type it is itself the result. Functions such as ``F.relu`` that the network
    calls by itself are no layers, and not seen.
    """
    if not any(isinstance(layer, kind) for layer in model.modules()):
        return model
    made = copy.deepcopy(model).eval().requires_grad_(False)
    for part in made.modules():
        if isinstance(part, Classifier) and part.anew and part.build:  # what it builds for its copies lacks the layers
            part.build = _building(part.build, kind, make)
    return _insert(made, kind, make)


def _building(
    build: Callable[..., nn.Module], kind: type[Layer], make: Callable[[Layer], nn.Module]
) -> Callable[..., nn.Module]:
    return lambda **values: _insert(build(**values), kind, make)


def _insert(network: nn.Module, kind: type[Layer], make: Callable[[Layer], nn.Module]) -> nn.Module:
    """The layers put into `network` itself; gives the network, or what stands for it where it is such a layer."""
    modules = list(network.modules())
    pairs = {id(layer): nn.Sequential(layer, make(layer)) for layer in modules if isinstance(layer, kind)}
    for pair in pairs.values():
        pair.train(network.training)
    for parent in modules:
        for name, child in list(parent._modules.items()):  # named_children gives a layer that has two names once
            if id(child) in pairs:
                setattr(parent, name, pairs[id(child)])
    return pairs.get(id(network), network)
