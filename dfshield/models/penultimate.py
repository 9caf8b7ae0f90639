"""Penultimate features of a network: what its last linear layer sees."""

from typing import Any

from torch import Tensor, nn

from dfshield.core.errors import InputError


class Penultimate:
    """Watches a network for the input of the last Linear layer that runs; `remove` ends it.

    After ``network(x)``, `features` holds that input as (N,D), with its gradient's graph, and `layer` is that layer.
    Raises InputError for a network without a Linear layer.
    """

    features: Tensor
    layer: nn.Linear

    def __init__(self, network: nn.Module) -> None:
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise InputError("the network has no Linear layer, so it has no penultimate features; use pixels instead")
        self._handles = [layer.register_forward_pre_hook(self._record) for layer in layers]

    def _record(self, layer: nn.Linear, inputs: tuple[Any, ...]) -> None:
        self.features, self.layer = inputs[0].flatten(1), layer

    def remove(self) -> None:
        """Undo the watching."""
        for handle in self._handles:
            handle.remove()
