"""TorchScript and exported programs as networks whose layers can be watched and trained.

Both become a program of ``torch.export``: a graph of operators in which BatchNorm is a call with given statistics. The
same graph is then built anew around layers: `nn.BatchNorm2d` and `nn.Dropout` in place of such calls, which so do in
training mode what they do there, and all tensors under the names that they had.
"""

import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfshield.core.errors import InputError
from dfshield.models.archives import checked_program, checked_script

aten = torch.ops.aten
WITH_TUPLE = aten._native_batch_norm_legit_no_training.default
"""A call of BatchNorm that returns a tuple, of which the output is the first."""
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Layers of BatchNorm by the number of axes of what they normalise."""
SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)
"""Calls whose second argument may hold the number of images."""
Original = Callable[[Tensor], Tensor]


def read_script(path: Path, input_shape: tuple[int, int, int]) -> tuple[nn.Module, Original, int]:
    """The network of a TorchScript archive, the archive's own answers, and 0: it takes any number of images.

    Raises InputError for an archive that may run code, and for what ``torch.export`` cannot convert.
    """
    from torch._export.converter import TS2EPConverter

    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        script = torch.jit.load(checked_script(path), map_location="cpu").eval()
        program = TS2EPConverter(script, (torch.zeros(2, *input_shape),)).convert()
    trained = dict(script.named_parameters())
    return _with_layers(program, path, script.state_dict(), trained), script, 0


def read_program(path: Path, input_shape: tuple[int, int, int]) -> tuple[nn.Module, Original, int]:
    """The network of an exported program, its own answers, and how many images it takes at once (0: any number).

    Raises InputError for a file that may run code, and for a program with several inputs.
    """
    program = torch.export.load(checked_program(path))
    trained = program.graph_signature.parameters
    return _with_layers(program, path, program.state_dict, trained), program.module(), _fixed(program, path)


def _inputs(program: Any) -> list[fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _fixed(program: Any, path: Path) -> int:
    """The number of images that a program was exported for; 0 where it is free."""
    inputs = _inputs(program)
    if len(inputs) != 1:
        raise InputError(f"{path}: its network takes {len(inputs)} inputs; export one that takes images alone")
    images = inputs[0].meta["val"].shape[0]
    return images if isinstance(images, int) else 0


class Converted(nn.Module):
    """A module of a program's tensors and layers, and the code that its graph is. Copies keep the order of both."""

    def __init__(self) -> None:
        super().__init__()
        self.code: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,classes)."""
        return self.code(self, x)


def _with_layers(program: Any, path: Path, names: Iterable[str], trained: Collection[str]) -> nn.Module:
    """The program's graph around layers with the program's tensors, as a network that trains.

    `names` are those of the original's tensors in its order, `trained` are its parameters.
    """
    images = _fixed(program, path)
    flat = program.module(check_guards=False)
    root, graph = Converted(), fx.Graph()
    for name in names:
        _owner(root, name)
    made: dict[fx.Node, Any] = {}

    def argument(node: fx.Node) -> Any:
        if node not in made:  # a tensor, which a layer may have in place of the graph
            value = _attribute(flat, str(node.target))
            _put(root, str(node.target), nn.Parameter(value) if node.target in trained else value)
            made[node] = graph.node_copy(node)
        return made[node]

    for node in flat.graph.nodes:
        if node.op == "output":
            outputs = [argument(found) for found in node.all_input_nodes]
            if len(outputs) != 1:
                raise InputError(
                    f"{path}: its network returns {len(outputs)} tensors; export one with the logits alone"
                )
            graph.output(outputs[0])
        elif node.op == "placeholder":
            made[node] = graph.node_copy(node)
        elif node.op != "call_function":
            continue  # tensors, when they are used, and conditions on the sizes of the inputs
        elif name := _layer(node, flat, root, path):
            called = graph.call_module(name, (argument(node.args[0]),))
            made[node] = (called,) if node.target is WITH_TUPLE else called
        elif node.target is operator.getitem and isinstance(made[node.args[0]], tuple):
            made[node] = made[node.args[0]][node.args[1]]
        else:
            made[node] = graph.node_copy(node, argument)
            if images and node.target in SIZED:
                _free(made[node], graph, images)
    root.code = type(fx.GraphModule(root, graph)).forward
    return root


def _free(node: fx.Node, graph: fx.Graph, images: int) -> None:
    """Let the first of a call's sizes follow the input where it is the number of images that was exported for."""
    sizes = list(node.args[1])  # type: ignore[arg-type]
    if sizes and sizes[0] == images:
        source = next(found for found in graph.nodes if found.op == "placeholder")
        with graph.inserting_before(node):
            count = graph.call_function(aten.sym_size.int, (source, 0))
        node.args = (node.args[0], [count, *sizes[1:]], *node.args[2:])


def _layer(node: fx.Node, flat: fx.GraphModule, root: nn.Module, path: Path) -> str:
    """The name of the layer of `root` that a call is, made where it is not there; empty for a call that stays one."""
    kind = BUILDERS.get(node.target)
    if kind is None:
        return ""
    values = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    values |= dict(zip(values, node.args, strict=False)) | node.kwargs
    if values.get("training") is True:
        raise InputError(f"{path}: was exported in training mode; call model.eval() and export it again")
    sources = {name: values[name] for name in TENSORS if values.get(name) is not None}
    if any(not isinstance(source, fx.Node) or source.op != "get_attr" for source in sources.values()):
        return ""
    tensors = {name: _attribute(flat, str(source.target)) for name, source in sources.items()}
    layer = kind(values, tensors)
    if layer is None:
        return ""
    for name, tensor in tensors.items():
        value = tensor.detach().clone()
        setattr(layer, name, value if name.startswith("running") else nn.Parameter(value))
    own = {str(source.target).rpartition(".")[0] for source in sources.values()}
    as_named = all(str(source.target).rpartition(".")[2] == name for name, source in sources.items())
    folder = own.pop() if len(own) == 1 and as_named else ""
    place, last = _owner(root, folder or f"{node.name}_layer")
    there = getattr(place, last, None)
    if there is not None and repr(there) == repr(layer):
        return folder
    if there is not None and (type(there) is not nn.Module or any(there.state_dict()) or any(there.children())):
        return ""  # the tensors are something else's, too
    place.add_module(last, layer)
    return folder or last


TENSORS = ("weight", "bias", "running_mean", "running_var")
"""What layers have of a program's tensors, by PyTorch's names, which are the operators' too."""


def _batch_norm(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    if "running_mean" not in tensors or "running_var" not in tensors:
        return None
    kind, mean = NORMS[values["input"].meta["val"].ndim], tensors["running_mean"]
    affine = "weight" in tensors
    layer: nn.Module = kind(len(mean), eps=values["eps"], momentum=values["momentum"], affine=affine, dtype=mean.dtype)
    return layer


def _convolution(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 4 or values.get("transposed"):
        return None
    groups, sizes = values["groups"], {name: _pair(values[name]) for name in ("stride", "padding", "dilation")}
    out, channels, height, width = weight.shape
    return nn.Conv2d(channels * groups, out, (height, width), groups=groups, bias="bias" in tensors, **sizes)


def _pair(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value) * (2 // len(value)) if len(value) else (0, 0)


def _linear(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    weight = tensors.get("weight")
    return None if weight is None else nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors)


def _dropout(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    return nn.Dropout(values["p"])


BUILDERS: dict[Any, Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module | None]] = {
    aten.batch_norm.default: _batch_norm,
    WITH_TUPLE: _batch_norm,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten._convolution_mode.default: _convolution,
    aten.convolution.default: _convolution,
    aten.linear.default: _linear,
    aten.dropout.default: _dropout,
}
"""Layers of operators, from their values and tensors; None where the operator stays."""


def _attribute(module: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _owner(root: nn.Module, target: str) -> tuple[nn.Module, str]:
    """The module of a dotted name, made where it is not there, and the last part of the name."""
    *folders, name = target.split(".")
    for folder in folders:
        if not hasattr(root, folder):
            root.add_module(folder, nn.Module())
        root = getattr(root, folder)
    return root, name


def _put(root: nn.Module, target: str, value: Any) -> None:
    """Give `root` a copy of the tensor that `target` names, unless it is there."""
    owner, name = _owner(root, target)
    if hasattr(owner, name):
        return
    if isinstance(value, nn.Parameter):
        owner.register_parameter(name, nn.Parameter(value.detach().clone()))
    elif isinstance(value, Tensor):
        owner.register_buffer(name, value.detach().clone())
    else:
        setattr(owner, name, value)
