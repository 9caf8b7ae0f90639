"""A quick copy of a classifier for crafting: frozen, in eval mode, each BatchNorm folded into its convolution.

In eval mode BatchNorm is y = s (Wx + b - m) + c with s = gamma / sqrt(v + eps), which is one convolution with weight sW
and bias s(b - m) + c. The copy is for attacks and inner maximisation only; verdicts are made on the model itself.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.models.standins import REMEDY, arranged, generated, stands_for


class Folded(nn.Module):
    """Images (N,C,H,W) to the logits of the live model in eval mode; `refresh` follows the live model's weights.

    The folded network is compared with the live one at the first call, and again after one, two, four, eight, ...
    refreshes. A plain copy takes its place if they differ, and where that does not follow the live model either, a new
    one at every refresh, which is said: slow rather than wrong.
    Raises InputError at that call for a network whose copies compute something else.
    """

    def __init__(self, live: nn.Module) -> None:
        super().__init__()
        traced, self._pairs = _trace(live)
        self.net: nn.Module = traced or _frozen_copy(live)
        self._live = [live]  # in a list: not a submodule
        self._refreshes, self._settled, self._follows = 0, False, True
        self._size, self._generated = 0, None  # type: tuple[int, Any]
        self._link()
        self.refresh()

    @property
    def folded_layers(self) -> int:
        """Number of BatchNorm layers folded away; 0 for the plain copy."""
        return len(self._pairs)

    def forward(self, x: Tensor) -> Tensor:
        if self._due:
            self._settle(x)
        if len(x) == self._size and torch.is_grad_enabled():  # without gradients it is too cheap to generate code for
            if self._generated is None:
                self._generated = generated(self.net)
            return self._generated(x)
        logits: Tensor = self.net(x)
        return logits

    def compile_for(self, size: int) -> None:
        """From now on run generated code for batches of `size` images, which takes a while to make at the first."""
        self._size = size

    def train(self, mode: bool = True) -> "Folded":
        """Stays in eval mode whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the weights in place from the live model, after an optimiser step or a BatchNorm update."""
        self._due = self._refreshes & (self._refreshes - 1) == 0
        self._refreshes += 1
        if not self._follows:
            self.net = _frozen_copy(self._live[0])
            return
        if self._targets:  # a network may have no tensors of its own
            torch._foreach_copy_(self._targets, self._sources)
        for conv, norm, own in self._folds:
            scale = torch.rsqrt(norm.running_var + norm.eps)
            if norm.weight is not None:
                scale = scale * norm.weight
            torch.mul(conv.weight, scale.view(-1, 1, 1, 1), out=own.weight)
            centre = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
            own.bias.copy_(-centre * scale if norm.bias is None else norm.bias - centre * scale)

    def _link(self) -> None:
        """Pair the copy's tensors with the live ones they come from."""
        live = self._live[0]
        folded = {conv for conv, _ in self._pairs}
        self._folds: list[tuple[Any, Any, Any]] = [
            (live.get_submodule(conv), live.get_submodule(norm), self.net.get_submodule(conv))
            for conv, norm in self._pairs
        ]
        sources = _tensors(live)
        kept = {
            name: value
            for name, value in _tensors(self.net).items()
            if name in sources and name.rpartition(".")[0] not in folded
        }
        self._targets = list(kept.values())
        self._sources = [sources[name].detach() for name in kept]

    def _settle(self, x: Tensor) -> None:
        """Compare with the live model, on images like `x`."""
        self._due = False
        live = self._live[0]
        before, self._settled = self._settled, True
        if stands_for(self.net, live, x):
            return
        if before:
            self._follows, self._size = False, 0
            log("copies of the network do not follow its weights; a new one is made at every update, which is slow")
        else:
            log("the network with BatchNorm folded into its convolutions answers otherwise; a plain copy is used")
        self.net, self._pairs, self._generated = _frozen_copy(live), [], None
        self._refreshes = 0  # compared at the next refresh again
        self._link()
        if not stands_for(self.net, live, x):
            raise InputError(f"no copy of the network computes what the network computes; {REMEDY}")


def fold(model: nn.Module) -> Folded:
    """A frozen eval-mode copy of `model` with BatchNorm folded into convolutions wherever that is exact.

    `model` keeps its mode, buffers and gradients. Where it cannot be traced, or nothing can be folded, the copy is a
    plain one and `refresh` copies its tensors.
    """
    return Folded(model)


def _frozen_copy(live: nn.Module) -> nn.Module:
    net = copy.deepcopy(live).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = None
    return arranged(net)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: value
        for source in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        for name, value in source
        if value.is_floating_point()
    }


class _Tracer(fx.Tracer):
    """Enters no module that is ``opaque``: a trace of one that draws would have the same draw at every call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return getattr(m, "opaque", False) or super().is_leaf_module(m, module_qualified_name)


def _trace(live: nn.Module) -> tuple[nn.Module | None, list[tuple[str, str]]]:
    """The folded network and the names of its (convolution, BatchNorm) pairs; None where nothing can be folded."""
    try:
        tracer = _Tracer()
        graph = tracer.trace(_frozen_copy(live))
        traced = fx.GraphModule(tracer.root, graph)
    except Exception:  # tracing runs the user's forward with placeholders, which may raise anything
        return None, []
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    pairs = []
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if not (isinstance(source, fx.Node) and node.op == source.op == "call_module"):
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        once = len(source.users) == 1 and calls.count(source.target) == calls.count(node.target) == 1
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or not once or norm.running_mean is None:
            continue
        conv.weight = nn.Parameter(conv.weight.clone(), requires_grad=False)  # another may share it
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]), requires_grad=False)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
        pairs.append((str(source.target), str(node.target)))
    if not pairs:
        return None, []
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, pairs
