"""Networks that come in one file with their graph: ONNX, TorchScript and programs of ``torch.export``.

`network` is a factory as a user's own would be. What it builds is compared with the file's own answers before it is
used, on several numbers of images: it is right, or it is refused. The file is never able to run code
(`dfshield.models.archives`).
"""

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from dfshield.core.errors import InputError, describe
from dfshield.core.files import existing_file
from dfshield.core.hashing import sha256_file
from dfshield.core.progress import log
from dfshield.core.rng import generator, seeded
from dfshield.models.archives import PROGRAM, SCRIPT, archive_kind
from dfshield.models.card import refuse_foreign
from dfshield.models.standins import alike
from dfshield.models.statistics import matched_layers

ONNX = "an ONNX graph"
REMEDIES = {
    ONNX: "export it again by torch.onnx.export(model, …, dynamo=False, do_constant_folding=False, "
    "training=torch.onnx.TrainingMode.PRESERVE), or by its new exporter with optimize=False",
    SCRIPT: "save it by torch.jit.script(model) or torch.jit.trace(model, x) before torch.jit.freeze and the like",
    PROGRAM: "export it again by torch.export.export(model.eval(), …), without decompositions",
}
"""How a file of each kind keeps its BatchNorm."""
COUNTS = (1, 2, 5)
"""Numbers of images that a network is compared on."""
Original = Callable[[Tensor], Tensor]


def network(file: str, input_shape: Sequence[int], sha256: str = "") -> nn.Module:
    """The trained network of `file`, for images (N,*input_shape), in eval mode on the CPU.

    With `sha256`, the file has to be that one. Raises InputError for anything but a graph whose converted network
    answers as the file does.
    """
    path = Path(file)
    existing_file(path, "the file of the network", "put it back, or start from the folder where it was")
    found = sha256_file(path)
    if sha256 and found != sha256:
        raise InputError(f"{path}: is another file than the one that was hardened ({found[:12]}, not {sha256[:12]})")
    channels, height, width = input_shape
    made = copy.deepcopy(_converted(str(path.absolute()), found, (channels, height, width)))
    return made.to(torch.get_default_device())  # meta, where only its size is asked for


def kind_of(path: Path) -> str:
    """What kind of graph a file is, by its content; raises InputError for one that has none."""
    refuse_foreign(path)
    kind = archive_kind(path)
    if kind:
        return kind
    if path.suffix == ".onnx":
        return ONNX
    raise InputError(
        f"{path}: has weights without their network (or is no .onnx, TorchScript or .pt2 file); "
        "give the factory that builds the network as well"
    )


@functools.lru_cache(maxsize=2)
def _converted(file: str, sha256: str, input_shape: tuple[int, int, int]) -> nn.Module:
    path, kind = Path(file), kind_of(Path(file))
    try:
        with torch.device("cpu"), seeded(0), torch.enable_grad():
            net, original, images = _reader(kind)(path, input_shape)
            net = net.float().eval()
            _say_norms(net, path, kind)
            _compare(net, original, images, input_shape, path)
            net = _without_softmax(net, path)
    except InputError:
        raise
    except Exception as error:  # converters and damaged files raise anything
        raise InputError(
            f"{path}: is {kind} that cannot be converted: {describe(error)}; "
            "save the state_dict() of the PyTorch network and give its factory"
        ) from None
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return net


def _reader(kind: str) -> Callable[[Path, tuple[int, int, int]], tuple[nn.Module, Original, int]]:
    if kind == ONNX:
        from dfshield.models.onnx_file import read_onnx

        return read_onnx
    from dfshield.models.exported import read_program, read_script

    return {SCRIPT: read_script, PROGRAM: read_program}[kind]


def _say_norms(net: nn.Module, path: Path, kind: str) -> None:
    if not matched_layers(net):
        log(
            f"{path}: {kind} without BatchNorm: if that was folded into the convolutions, {REMEDIES[kind]}; "
            "images that match its statistics make more robust networks"
        )


@torch.no_grad()
def _compare(net: nn.Module, original: Original, images: int, shape: tuple[int, int, int], path: Path) -> None:
    """Raise InputError unless `net` answers as the file itself, for images one by one and together."""
    x = torch.randn((max(COUNTS), *shape), generator=generator("graph"))
    x[0] = torch.rand(shape, generator=generator("graph", 0))
    expected = _by_groups(original, x, images)
    if expected.ndim != 2:
        raise InputError(f"{path}: gives {list(expected.shape)} for {len(x)} images; logits (N,classes) are needed")
    for count in COUNTS:
        found = net(x[:count])
        if not isinstance(found, Tensor) or not alike([found], [expected[:count]]):
            far = "another form" if not isinstance(found, Tensor) else _distance(found, expected[:count])
            fixed = f" (it was exported for {images}; export it with a free number of images)" if images else ""
            raise InputError(
                f"{path}: its converted network answers otherwise than the file, for {count} images: {far}{fixed}; "
                "save the state_dict() of the PyTorch network and give its factory"
            )


def _without_softmax(net: nn.Module, path: Path) -> nn.Module:
    """`net` without the softmax over classes that an ONNX graph ends in, which is said: all losses take logits."""
    if not isinstance(net, fx.GraphModule):
        return net
    output = next(node for node in reversed(net.graph.nodes) if node.op == "output")
    last = output.args[0]
    layer = net.get_submodule(str(last.target)) if isinstance(last, fx.Node) and last.op == "call_module" else None
    if not type(layer).__name__.removeprefix("Onnx").startswith("Softmax"):
        return net
    output.args = (last.args[0],)
    net.graph.erase_node(last)
    net.delete_submodule(str(last.target))
    net.recompile()
    log(f"{path}: its graph ends in Softmax, which is left out; what is handed out gives logits")
    return net


def _distance(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"{list(found.shape)} for {list(expected.shape)}"
    return f"logits differ by {float((found - expected).abs().max()):.2g}"


def _by_groups(original: Original, x: Tensor, images: int) -> Tensor:
    """Answers to `x`, by `images` at once where a file takes just so many."""
    size = images or len(x)
    groups = [x[start : start + size] for start in range(0, len(x), size)]
    filled = [torch.cat([group, x[:1].expand(size - len(group), *x.shape[1:])]) for group in groups]
    return torch.cat([original(group.contiguous()) for group in filled])[: len(x)]
