"""Penultimate features of a network: what its last linear layer sees."""

from typing import Any

from torch import Tensor, nn

from dfshield.core.errors import InputError


class Penultimate:
    """Watches a network for the input of the last Linear layer that runs; `remove` ends it.

    After ``network(x)``, `features` holds that input as (N,D), with its gradient's graph, and `layer` is that layer.
    Raises InputError for a network without a Linear layer, and when asked for what none has seen.
    """

    def __init__(self, network: nn.Module) -> None:
        self._seen: tuple[Tensor, nn.Linear] | None = None
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise InputError("the network has no Linear layer, so it has no penultimate features; use pixels instead")
        self._handles = [layer.register_forward_pre_hook(self._record, with_kwargs=True) for layer in layers]

    def _record(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, nn.Linear)
        self._seen = (*inputs, *named.values())[0].flatten(1), layer

    @property
    def features(self) -> Tensor:
        return self._last()[0]

    @property
    def layer(self) -> nn.Linear:
        return self._last()[1]

    def _last(self) -> tuple[Tensor, nn.Linear]:
        if self._seen is None:
            raise InputError(
                "the network calls none of its Linear layers, so it has no penultimate features; "
                "use pixels instead, or call them as layers, self.fc(x), in its forward"
            )
        return self._seen

    def remove(self) -> None:
        """Undo the watching."""
        for handle in self._handles:
            handle.remove()
