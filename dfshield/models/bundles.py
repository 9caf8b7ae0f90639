"""Models that bring their network along: the factories that build it from their files. Read without PyTorch.

Such a model needs no factory of its user's: `factory_of` says which of ours it is. Where its files lie is no part of
what it is, so `PLACES` are left out of what is compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

GRAPH = "dfshield.models.graphs:network"
"""The factory of an ONNX graph, a TorchScript archive, a program of ``torch.export``: weights and network in one file."""
HUB = "dfshield.models.hubs:network"
"""The factory of a folder with ``config.json`` and weights, as transformers and timm write it."""
PLACES = {GRAPH: "file", HUB: "folder"}
"""The argument of each that says where the model lies."""


def factory_of(weights: Path, input_shape: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Factory and arguments for a model without a factory of its own: a folder, or a file that has its network."""
    if weights.is_dir() or weights.name == "config.json":
        return HUB, {"folder": str(weights if weights.is_dir() else weights.parent)}
    return GRAPH, {"file": str(weights), "input_shape": list(input_shape)}
