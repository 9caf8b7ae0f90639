"""Features of a network's stages: the inputs of layers that shrink a feature map, and of the last Linear layer."""

from typing import Any

import torch
from torch import Tensor, nn

from dfshield.core.errors import InputError


def stage_layers(network: nn.Module, x: Tensor) -> dict[str, int]:
    """Layers whose inputs are the stage features of `network`, by name: numbers of an image of `x` (N,C,H,W) in each.

    They are the layers that shrink a feature map, though not to a single number a channel, and the last Linear layer.
    Layers that see the same tensor count once; those that see the images do not count.
    Raises InputError for a network that has none.
    """
    shrinking: dict[int, tuple[str, Tensor]] = {}
    last: list[tuple[str, Tensor]] = []
    weighted = False

    def look(name: str, layer: nn.Module, seen: Any, output: Any) -> None:
        nonlocal weighted
        if weighted and isinstance(seen, Tensor) and isinstance(output, Tensor):
            if isinstance(layer, nn.Linear):
                last[:] = [(name, seen)]
            elif seen.ndim == output.ndim == 4 and 1 < output[0, 0].numel() < seen[0, 0].numel():
                shrinking.setdefault(id(seen), (name, seen))  # the tensor is kept: no other gets its number meanwhile
        weighted = weighted or any(True for _ in layer.parameters())

    leaves = [(n, m) for n, m in network.named_modules() if not any(True for _ in m.children())]
    handles = [
        m.register_forward_hook(lambda m, i, k, o, n=n: look(n, m, _first(i, k), o), with_kwargs=True)
        for n, m in leaves
        if not isinstance(m, torch.jit.ScriptModule)
    ]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: seen[0].numel() for name, seen in (*shrinking.values(), *last)}
    if not found:
        raise InputError(
            "features: no layer of the network can be seen to shrink a feature map, and there is no Linear layer; "
            "use features 0"
        )
    return found


def _first(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return next(iter((*inputs, *named.values())), None)


class Staged(nn.Module):
    """A network that gives the features of its stages beside its logits, all in one tensor.

    Images (N,C,H,W) to (N,K+D): K logits, then the D numbers that the `layers` (see `stage_layers`) see. `parts` takes
    it apart. One tensor is what generated code can be compared by.
    """

    def __init__(self, network: nn.Module, layers: dict[str, int]) -> None:
        super().__init__()
        self.network, self._layers = network, layers
        self._seen: dict[str, Tensor] = {}
        for name in layers:
            network.get_submodule(name).register_forward_pre_hook(self._keeper(name), with_kwargs=True)

    def _keeper(self, name: str) -> Any:
        def keep(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._seen[name] = _first(inputs, named)

        return keep

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return torch.cat([logits, *(self._seen[name].flatten(1) for name in self._layers)], 1)

    def parts(self, output: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (N,K), and the features (N,D) of each stage, of what `forward` gave."""
        sizes = list(self._layers.values())
        logits, *features = output.split([output.shape[1] - sum(sizes), *sizes], 1)
        return logits, features
