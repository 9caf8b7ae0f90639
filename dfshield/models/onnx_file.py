"""ONNX graphs as networks, by onnx2torch, and networks as ONNX graphs.

onnx2torch knows operators up to opset 15 or so and weights that are initialisers. So a graph is first brought into that
form by ONNX's own tools, without folding BatchNorm into anything. All of it is imported when it is used.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield.core.errors import InputError, describe
from dfshield.core.files import atomic
from dfshield.models.bundles import PIP

OPSET = 15
"""The newest version of ONNX's operators that all of onnx2torch's converters know."""
WRITTEN_OPSET = 17
"""The version of ONNX's operators that graphs are written in."""
TOLERANCE = 1e-3
"""Largest deviation of a written graph's logits, relative to the largest logit."""
Original = Callable[[Tensor], Tensor]
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def read_onnx(path: Path, input_shape: tuple[int, int, int]) -> tuple[nn.Module, Original, int]:
    """The network of an ONNX graph, onnxruntime's answers, and how many images the graph takes at once (0: any number).

    Raises InputError where a package is missing, and for a graph with several inputs or outputs.
    """
    with imported(path):
        import_torchvision()
        import onnx
        from onnx2torch import convert
    # what onnx2torch's layers say at every pass, and no user can mend
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
    model = onnx.load(str(path))
    images = _fixed(model, path, input_shape)
    ready = _prepared(model, images)
    with warnings.catch_warnings(action="ignore"):
        network = convert(ready)
    _trainable(network)
    return network, _runtime(path), images


@contextlib.contextmanager
def imported(path: Path) -> Iterator[None]:
    """What the block imports is there, or an InputError says how to get it."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{path}: ONNX graphs need the package {error.name}; run {PIP}") from None
    except RuntimeError as error:  # torchvision, beside another build of PyTorch
        raise InputError(f"{path}: a package for ONNX graphs does not import ({describe(error)}); run {PIP}") from None


def import_torchvision() -> None:
    """Import torchvision, which onnx2torch imports, also beside a build of PyTorch that its operators are not for.

    It then fails to find them by name as it is imported. No converter of a classifier's operators calls them.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # defined by an earlier try
                _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [known for known in sys.modules if known.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


def _fixed(model: Any, path: Path, input_shape: tuple[int, int, int]) -> int:
    """The number of images that a graph takes; 0 where it is free. InputError for a graph that is no classifier."""
    weights = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for what, values in (("inputs", inputs), ("outputs", model.graph.output)):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)[:100]
            raise InputError(f"{path}: its graph has {len(values)} {what} ({names}); export one of images and logits")
    sizes = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]  # 0 where a size is free
    if len(sizes) != 4 or any(size > 0 and size != own for size, own in zip(sizes[1:], input_shape, strict=False)):
        shown = [size if size > 0 else "any" for size in sizes]
        raise InputError(f"{path}: its graph takes {shown}, input_shape is {list(input_shape)}; correct input_shape")
    return max(sizes[0], 0) if sizes else 0


def _prepared(model: Any, images: int) -> Any:
    """The same graph for any number of images, in operators that onnx2torch knows, all weights as initialisers."""
    import onnx_ir
    from onnx import shape_inference, version_converter
    from onnx_ir.passes import common
    from onnxscript import optimizer

    graph = onnx_ir.serde.deserialize_model(model)
    common.InlinePass()(graph)
    optimizer.fold_constants(graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    for simplify in (common.IdentityEliminationPass(), common.RemoveUnusedNodesPass()):
        simplify(graph)
    ready = onnx_ir.serde.serialize_model(graph)
    del ready.graph.value_info[:]
    if images:
        _free(ready, images)
    for node in ready.graph.node:  # in a graph of images no size is 0
        for attribute in [found for found in node.attribute if found.name == "allowzero"]:
            node.attribute.remove(attribute)
    if next(found.version for found in ready.opset_import if found.domain in ("", "ai.onnx")) > OPSET:
        try:
            ready = version_converter.convert_version(ready, OPSET)
        except RuntimeError:  # newer versions mostly take more types; whether it is right, the comparison says
            next(found for found in ready.opset_import if found.domain in ("", "ai.onnx")).version = OPSET
            _axes_as_attributes(ready)
    return shape_inference.infer_shapes(ready)


def _axes_as_attributes(model: Any) -> None:
    """Give reductions their axes as they were given before opset 18, in place."""
    from onnx import helper, numpy_helper

    weights = {value.name: value for value in model.graph.initializer}
    for node in model.graph.node:
        reduces = node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
        if reduces and len(node.input) == 2 and node.input[1] in weights:
            axes = numpy_helper.to_array(weights[node.input[1]]).tolist()
            del node.input[1]
            node.attribute.append(helper.make_attribute("axes", axes))


def _free(model: Any, images: int) -> None:
    """Let sizes follow the input where they are the number of images that a graph was exported for, in place."""
    from onnx import numpy_helper

    weights = {value.name: value for value in model.graph.initializer}
    for value in (*(v for v in model.graph.input if v.name not in weights), *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "images"
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in weights:
            sizes = numpy_helper.to_array(weights[node.input[1]]).copy()
            if sizes.size and sizes[0] == images:
                sizes[0] = 0  # in a Reshape: as many as its input has
                weights[node.input[1]].CopyFrom(numpy_helper.from_array(sizes, node.input[1]))


def _trainable(network: Any) -> None:
    """Make parameters of the matrices that onnx2torch keeps as buffers, and of what is added to their products."""
    weights = set()
    for node in network.graph.nodes:
        kind = type(network.get_submodule(node.target)).__name__ if node.op == "call_module" else ""
        sources = [found for found in node.args if isinstance(found, torch.fx.Node)]
        of_products = [found for found in sources if found.op == "call_module" and _is_product(network, found)]
        if kind == "OnnxMatMul" or (kind == "OnnxBinaryMathOperation" and of_products):
            weights |= {str(found.target) for found in sources if found.op == "get_attr"}
    for name in sorted(weights):
        owner, _, last = name.rpartition(".")
        module = network.get_submodule(owner)
        value = getattr(module, last)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1 and last in module._buffers:
            del module._buffers[last]
            module.register_parameter(last, nn.Parameter(value.detach().clone()))


def _is_product(network: Any, node: torch.fx.Node) -> bool:
    return type(network.get_submodule(node.target)).__name__ == "OnnxMatMul"


def _runtime(path: Path) -> Original:
    """What onnxruntime answers to images (N,C,H,W)."""
    with imported(path):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0]))

    return answer


def write_onnx(network: nn.Module, path: Path, input_shape: Sequence[int]) -> None:
    """Write `network` as an ONNX graph of any number of images (N,*input_shape), BatchNorm left as it is.

    Raises InputError where it has no such form, where onnxruntime does not answer as the network does, and where a
    package is missing.
    """
    with imported(path):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    network = network.eval()
    x = torch.rand((3, *input_shape), generator=torch.Generator().manual_seed(0))
    with atomic(path) as temporary:
        with warnings.catch_warnings(action="ignore"), _opset_known(), torch.no_grad():
            try:
                torch.onnx.export(
                    network,
                    (x[:2],),
                    str(temporary),
                    dynamo=False,
                    opset_version=WRITTEN_OPSET,
                    input_names=["images"],
                    output_names=["logits"],
                    dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
                    training=torch.onnx.TrainingMode.PRESERVE,
                    do_constant_folding=False,
                )
            except Exception as error:  # the exporter may raise anything
                raise InputError(f"{path}: not written: {describe(error)}") from None
            found, expected = _runtime(temporary)(x), network(x)
        if not bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max()):
            raise InputError(f"{path}: not written: onnxruntime answers otherwise than the network")


@contextlib.contextmanager
def _opset_known() -> Iterator[None]:
    """Inside the block onnx2torch's layers find the version that a graph is written in.

    They look for it where older versions of PyTorch have it: `torch.onnx.symbolic_helper.GLOBALS`.
    """
    from torch.onnx import symbolic_helper

    before = vars(symbolic_helper).get("GLOBALS")
    symbolic_helper.GLOBALS = SimpleNamespace(export_onnx_opset_version=WRITTEN_OPSET)  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del symbolic_helper.GLOBALS
        else:
            symbolic_helper.GLOBALS = before
