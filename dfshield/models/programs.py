"""TorchScript and exported programs as networks whose layers can be watched and trained.

Both become a program of ``torch.export``: a graph of operators in which BatchNorm is a call with given statistics. The
same graph is then built anew around layers: `nn.BatchNorm2d` and `nn.Dropout` in place of such calls, which so do in
training mode what they do there, and all tensors under the names that they had.
"""

import operator
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfshield.core.errors import InputError
from dfshield.models.archives import checked_program, checked_script

aten = torch.ops.aten
NORMS = {aten.batch_norm.default: "whole", aten._native_batch_norm_legit_no_training.default: "first"}
"""Calls of BatchNorm, and whether they return its output or a tuple of which that is the first."""
LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Layers by the number of axes of what they normalise."""
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
    return _with_layers(program, path, dict(script.named_parameters())), script, 0


def read_program(path: Path, input_shape: tuple[int, int, int]) -> tuple[nn.Module, Original, int]:
    """The network of an exported program, its own answers, and how many images it takes at once (0: any number).

    Raises InputError for a file that may run code, and for a program with several inputs.
    """
    program = torch.export.load(checked_program(path))
    return _with_layers(program, path), program.module(), _fixed(program, path)


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


def _with_layers(program: Any, path: Path, trained: Collection[str] = ()) -> nn.Module:
    """The program's graph around layers with the program's tensors, as a network that trains.

    `trained` names tensors that are parameters, whatever the program says.
    """
    images = _fixed(program, path)
    flat = program.module(check_guards=False)
    root, graph = nn.Module(), fx.Graph()
    made: dict[fx.Node, Any] = {}
    for node in flat.graph.nodes:
        if node.op == "output":
            outputs = [made[found] for found in node.all_input_nodes]
            if len(outputs) != 1:
                raise InputError(f"{path}: its network returns {len(outputs)} tensors; export one with the logits alone")
            graph.output(outputs[0])
        elif node.op == "call_module":
            continue  # conditions on the sizes of the inputs
        elif node.target in NORMS and (layer := _norm(node, flat, path)) is not None:
            name = _folder(node.args[3].target)
            _put(root, name, layer)
            normed = graph.call_module(name, (made[node.args[0]],))
            made[node] = normed if NORMS[node.target] == "whole" else (normed,)
        elif node.target is aten.dropout.default:
            _put(root, f"{node.name}_layer", nn.Dropout(node.args[1]))
            made[node] = graph.call_module(f"{node.name}_layer", (made[node.args[0]],))
        elif node.target is operator.getitem and isinstance(made[node.args[0]], tuple):
            made[node] = made[node.args[0]][node.args[1]]
        else:
            if node.op == "get_attr":
                value = _attribute(flat, node.target)
                _put(root, node.target, nn.Parameter(value) if node.target in trained else value)
            made[node] = graph.node_copy(node, lambda other: made[other])
            if images and node.target in SIZED:
                _free(made[node], graph, images)
    fx.GraphModule(root, graph).graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)  # which keeps of root what the graph still names


def _free(node: fx.Node, graph: fx.Graph, images: int) -> None:
    """Let the first of a call's sizes follow the input where it is the number of images that was exported for."""
    sizes = list(node.args[1])  # type: ignore[arg-type]
    if sizes and sizes[0] == images:
        source = next(found for found in graph.nodes if found.op == "placeholder")
        with graph.inserting_before(node):
            count = graph.call_function(aten.sym_size.int, (source, 0))
        node.args = (node.args[0], [count, *sizes[1:]], *node.args[2:])


def _norm(node: fx.Node, flat: fx.GraphModule, path: Path) -> nn.Module | None:
    """The layer that a call of BatchNorm is; None where its statistics are no tensors of the file."""
    arguments = list(node.args)
    tensors = [arg for arg in arguments[1:5] if arg is not None]
    if arguments[3] is None or any(not isinstance(arg, fx.Node) or arg.op != "get_attr" for arg in tensors):
        return None
    momentum, eps = arguments[-3:-1] if node.target is aten.batch_norm.default else arguments[-2:]
    if node.target is aten.batch_norm.default and arguments[5]:
        raise InputError(f"{path}: was exported in training mode; call model.eval() and export it again")
    scale, shift, mean, variance = (None if arg is None else _attribute(flat, arg.target) for arg in arguments[1:5])
    kind = LAYERS[arguments[0].meta["val"].ndim]
    layer = kind(len(mean), eps=eps, momentum=momentum, affine=scale is not None, dtype=mean.dtype)
    layer.running_mean, layer.running_var = mean.detach().clone(), variance.detach().clone()
    if scale is not None:
        layer.weight, layer.bias = (nn.Parameter(value.detach().clone()) for value in (scale, shift))
    return layer


def _folder(target: str) -> str:
    """The module's name of a tensor's name."""
    return target.rpartition(".")[0] or f"{target}_layer"


def _attribute(module: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _put(root: nn.Module, target: str, value: Any) -> None:
    """Give `root` what `target` names, with modules for the folders before it.

    What is there stays, but a folder gives way to the layer of its tensors.
    """
    *folders, name = target.split(".")
    owner = root
    for folder in folders:
        if not hasattr(owner, folder):
            owner.add_module(folder, nn.Module())
        owner = getattr(owner, folder)
    if hasattr(owner, name) and not (type(getattr(owner, name)) is nn.Module and isinstance(value, nn.Module)):
        return
    if isinstance(value, nn.Parameter):
        setattr(owner, name, nn.Parameter(value.detach().clone()))
    elif isinstance(value, Tensor):
        owner.register_buffer(name, value.detach().clone())
    else:
        setattr(owner, name, value)

