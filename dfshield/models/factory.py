"""Build networks: registered ones by name, the user's own from a factory function in their code."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dfshield import registry
from dfshield.core.errors import InputError, describe
from dfshield.core.rng import generator, seeded
from dfshield.models.probe import refuse_misfit
from dfshield.models.user_code import as_author, call_factory

Shape = tuple[int, int, int]


def build_network(
    model: str,
    input_shape: Shape,
    classes: int,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network without normalisation layer, initialised from `seed` alone, in training mode.

    `model` is a name of ``registry.MODELS``, unless `factory` (``package.module:function`` or ``file.py:function``,
    looked up from the current folder) is given, which is called with `arguments`. Raises InputError if the name or
    factory is unknown, or if the user's network does not turn (N,*input_shape) into (N,classes).
    """
    with seeded(generator("initialisation", seed).initial_seed()):
        if factory is not None:
            return _user_network(factory, input_shape, classes, dict(arguments or {}))
        if model not in registry.MODELS:
            raise InputError(
                f"model {model!r} is not one of {', '.join(registry.MODELS)}; give a factory for a model of your own"
            )
        net: nn.Module = registry.MODELS[model].load()(input_shape, classes)
        return net


def _user_network(factory: str, input_shape: Shape, classes: int, arguments: dict[str, Any]) -> nn.Module:
    net = call_factory(factory, arguments).float()
    for layer in net.modules():
        if type(layer) is nn.SyncBatchNorm:  # the same tensors and arithmetic, without the other processes
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    with as_author(factory, f"factory {factory}: "):
        _check_outputs(net, factory, input_shape, classes)
    return net


def _check_outputs(net: nn.Module, factory: str, input_shape: Shape, classes: int) -> None:
    training, names = net.training, set(net.state_dict())
    try:
        with torch.no_grad():
            net.eval()
            logits = net(torch.zeros(1, *input_shape))
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"factory {factory}: a forward pass with input_shape {list(input_shape)} failed: {describe(error)}; "
            "correct input_shape (C,H,W) or the network"
        ) from None
    finally:
        net.train(training)
    refuse_misfit(logits, 1, classes, f"factory {factory}")
    if late := sorted(set(net.state_dict()) - names):
        raise InputError(
            f"factory {factory}: makes {late[0]} at its first call, so no weights can be loaded into a new network; "
            "make all layers in its constructor"
        )
