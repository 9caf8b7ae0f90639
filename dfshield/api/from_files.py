"""A model in files, as `dfshield.harden` and its command take it: the network with its weights, and what it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.files import find_weights
from dfshield.core.progress import log
from dfshield.models.bundles import brings_weights, factory_of
from dfshield.models.hubs import stated, stated_by_timm
from dfshield.models.user_code import call_factory
from dfshield.models.weights import load_weights


@dataclass(frozen=True)
class Model:
    """A trained network, how a config names it, and its input."""

    network: nn.Module
    entry: dict[str, Any]
    """``weights`` and, where the network is the user's code, ``factory`` and ``arguments``."""
    input_shape: Sequence[int]
    mean: Sequence[float] | None
    std: Sequence[float] | None


def read(
    weights: Path,
    factory: str | None,
    arguments: Mapping[str, Any],
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Model:
    """Build the network and load `weights`; what is not given is what the model itself says of its input.

    Without a `factory` the weights are a file or folder that brings its network. Raises InputError for what cannot be
    built, and where the size of the input is said nowhere.
    """
    place = weights.absolute()
    given = {"input_shape": input_shape, "mean": mean, "std": std}
    if factory is None:
        told = stated(place) if place.is_dir() else {}
        builder, values = factory_of(place, _shape(input_shape or told.get("input_shape"), weights))
        if arguments:
            raise InputError("arguments: are those of a factory, and none is given; give factory or leave them out")
        network, entry = call_factory(builder, values), {}
    else:
        file, _, function = factory.rpartition(":")
        builder, values = f"{Path(file).absolute()}:{function}" if file.endswith(".py") else factory, dict(arguments)
        network, entry = call_factory(builder, values), {"factory": builder, "arguments": values}
        told = stated_by_timm(getattr(network, "pretrained_cfg", None) or {})
    if not brings_weights(builder, values, place):
        load_weights(network, find_weights(place))
    taken = {name: told[name] for name, value in given.items() if value is None and name in told}
    if taken:
        said = ", ".join(f"{name} {list(value)}" for name, value in taken.items())
        log(f"{weights}: the model itself says {said}; give others where they are wrong")
    found: dict[str, Any] = given | taken
    shape = _shape(found["input_shape"], weights)
    return Model(network, entry | {"weights": str(place)}, shape, found["mean"], found["std"])


def _shape(input_shape: Sequence[int] | None, weights: Path) -> Sequence[int]:
    if input_shape is None:
        raise InputError(f"{weights}: does not say what images it takes; give input_shape: channels, height, width")
    return input_shape
