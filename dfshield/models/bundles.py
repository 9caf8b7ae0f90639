"""Models that bring their network along: the factories that build it from their files. Read without PyTorch.

Such a model needs no factory of its user's: `factory_of` says which of ours it is. Where its files lie is no part of
what it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfshield.core.errors import InputError
from dfshield.core.hashing import sha256_file

GRAPH = "dfshield.models.graphs:network"
"""The factory of an ONNX graph, a TorchScript archive, a program of ``torch.export``: one file for all."""
HUB = "dfshield.models.hubs:network"
"""The factory of a folder with ``config.json`` and weights, as transformers and timm write it."""
PLACES = {GRAPH: "file", HUB: "folder"}
"""The argument of each that says where the model lies."""
PIP = "pip install 'dfshield[models]'"
"""What installs the packages that read such models."""


def factory_of(weights: Path, input_shape: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Factory and arguments for a model without a factory of its own: a folder, or a file that has its network."""
    if weights.is_dir() or weights.name == "config.json":
        return HUB, {"folder": str(weights if weights.is_dir() else weights.parent)}
    return GRAPH, {"file": str(weights), "input_shape": list(input_shape)}


def pinned(factory: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the SHA-256 of the file that the network is built from; as they are for other factories."""
    if factory not in PLACES or PLACES[factory] not in arguments:
        return dict(arguments)
    return {**arguments, "sha256": sha256_file(network_file(arguments[PLACES[factory]]))}


def wherever(factory: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without the place of the files and their hash, which are compared by their content."""
    left_out = (PLACES[factory], "sha256") if factory in PLACES else ()
    return {name: value for name, value in arguments.items() if name not in left_out}


def network_file(place: str | Path) -> Path:
    """The file that says what the network is: `place` itself, or ``config.json`` in a folder; InputError without it."""
    path = Path(place)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file (it says what the network is); put it back where it was")
    return path


def brings_weights(factory: str | None, arguments: Mapping[str, Any], weights: Path) -> bool:
    """Whether what a factory builds has the weights of the file `weights` already."""
    return factory == GRAPH and Path(arguments.get("file", "")).absolute() == weights.absolute()
