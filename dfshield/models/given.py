"""Networks that a caller hands over as objects. Stages build theirs by a factory; this is the one that copies such."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from dfshield.core.errors import InputError

_held: dict[str, nn.Module] = {}


def hold(name: str, model: nn.Module) -> None:
    """Keep `model` under `name` until another takes its place; the object itself is never changed."""
    _held[name] = model


def network(name: str) -> nn.Module:
    """A copy of the network held under `name`, on PyTorch's default device: where only its size is asked for, meta."""
    if name not in _held:
        raise LookupError(f"the network {name!r} was an object in another process; give it again")
    return copy.deepcopy(_held[name]).to(torch.get_default_device())


def scale(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> dict[str, list[float]]:
    """Mean and standard deviation of the pixels of each channel; of none: 0 and 1, so that pixels stay in [0,1]."""
    found = {"mean": [0.0] * channels if mean is None else mean, "std": [1.0] * channels if std is None else std}
    return {name: [float(value) for value in values] for name, values in found.items()}


@torch.no_grad()
def classes_of(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of classes of a network, by one forward pass of a copy; raises InputError if it has no logits."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model: is a {type(model).__name__}; give a torch.nn.Module")
    try:
        logits = copy.deepcopy(model).cpu().eval()(torch.zeros(2, *shape))
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"model: a forward pass of (2,{shape}) failed: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"model: returned {found} for two images; it must return logits (2,classes)")
    return logits.shape[1]
