"""Passes of a network in every way in which the program will use it, and what each of them showed.

Nothing is judged here (see `dfshield.models.probe`), and nothing is left behind: the network's tensors and modes are
put back, and the global random states.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfshield.core.errors import describe
from dfshield.core.rng import generator, seeded
from dfshield.models.classifier import Classifier

MOST, FEWEST = 50, 3
"""Images of the large batches: the most, and the fewest where a network is large."""
BUDGET = 2_000_000_000
"""Multiply-adds of one forward pass of a large batch: some tenths of a second on one core."""
OF_A_NUMBER = 50
"""Multiply-adds that take as long as writing one number of a layer's output and reading it again."""
NORMS = nn.modules.batchnorm._BatchNorm


class Setting(NamedTuple):
    """How a pass is made."""

    rows: slice
    """Which of the images."""
    train: bool = False
    bf16: bool = False
    gradient: bool = True

    @property
    def text(self) -> str:
        """For a person, without the number of images."""
        mode = "training mode" if self.train else "eval mode"
        return mode + ", bf16 autocast" * self.bf16


ONE, TWO, MANY = slice(0, 1), slice(1, 3), slice(None)
SETTINGS = {
    "one": Setting(ONE, gradient=False),
    "two": Setting(TWO, gradient=False),
    "many": Setting(MANY),
    "again": Setting(MANY, gradient=False),
    "repeated": Setting(MANY, gradient=False),
    "bf16": Setting(TWO, bf16=True),
    "train two": Setting(TWO, train=True),
    "train many": Setting(MANY, train=True),
    "train bf16": Setting(TWO, train=True, bf16=True),
}
"""All passes in their order; those in eval mode come first. All but "again" are made with one random seed."""
FIRST_IN_TRAINING = next(name for name, setting in SETTINGS.items() if setting.train)
PLAIN = ("one", "two", "many", "again", "repeated", "train two", "train many")
"""Passes that every network has to stand: fp32, contiguous."""


@dataclass
class Pass:
    """What one pass showed."""

    images: int
    text: str
    """How it was made, for a person."""
    error: str = ""
    """What was raised, in one line."""
    output: Any = None
    changed_input: bool = False
    cut: bool = False
    """The output has no graph although it was asked for."""
    pixels: Tensor | None = None
    """Gradient (N,C,H,W) of the images; None where none was asked for or there is none."""
    missing: set[str] = field(default_factory=set)
    """Parameters without a gradient."""

    @property
    def logits(self) -> Tensor | None:
        """The output where it is an (N,K) tensor of floats, in float32."""
        value = self.output
        whole = isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
        return value.detach().float() if whole and len(value) == self.images else None


@dataclass
class Walk:
    """What all passes showed of a network, and what it is made of."""

    net: nn.Module
    classes: int
    device: torch.device
    passes: dict[str, Pass] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each BatchNorm layer was called, by name, in each pass."""
    changed: list[str] = field(default_factory=list)
    """Tensors that passes in eval mode changed."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that were not to be trained."""


def walk(
    classifier: Classifier, input_shape: tuple[int, int, int], classes: int, names: Iterable[str] = tuple(SETTINGS)
) -> Walk:
    """Make the passes of those `names` with `classifier`, which is as before afterwards.

    Exceptions of the network are recorded. `input_shape` is (C,H,W).
    """
    net, device = classifier.net, classifier.mean.device
    found = Walk(net, classes, device)
    found.frozen = [name for name, value in net.named_parameters() if _trainable(value) and not value.requires_grad]
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, NORMS)}
    with restored(net), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a pass warns of, the stages will
        for parameter in filter(_trainable, net.parameters()):
            parameter.requires_grad_(True)
        with seeded(0, device):
            x = images(input_shape, _size(classifier, input_shape)).to(device)
        before = {name: value.detach().clone() for name, value in _tensors(net).items()}
        for name in names:
            setting = SETTINGS[name]
            if name == FIRST_IN_TRAINING:
                now = _tensors(net)
                found.changed = [key for key, value in before.items() if not _equal(now.get(key), value)]
            with _counted(layers) as found.calls[name], seeded(int(name == "again"), device):
                found.passes[name] = one = _pass(classifier, x[setting.rows], setting)
            if name in PLAIN and one.error:  # nothing else is of interest
                found.passes |= {other: one for other in SETTINGS if other not in found.passes}
                break
    return found


def images(input_shape: tuple[int, int, int], count: int) -> Tensor:
    """Images (count,C,H,W) in [0,1]: a black and a white one, and noise, each the smoother and paler the later."""
    channels, height, width = input_shape
    noise = torch.rand((count, channels, height, width), generator=generator("probe"))
    for row in range(3, count):
        low = noise[row, :, : max(1, height // (1 + row % 4)), : max(1, width // (1 + row % 4))]
        enlarged = nn.functional.interpolate(low[None], (height, width), mode="bilinear")[0]
        noise[row] = 0.5 + (enlarged - 0.5) / (1 + row % 3)
    noise[0], noise[1] = 0.0, 1.0
    return noise


def _size(classifier: Classifier, input_shape: tuple[int, int, int]) -> int:
    """How many images a large batch has: so many as the arithmetic of one leaves room for."""
    work = []

    def count(layer: nn.Module, _: Any, output: Any) -> None:
        weight = getattr(layer, "weight", None)
        products = weight[0].numel() if isinstance(weight, Tensor) and weight.ndim else 0
        if isinstance(output, Tensor):
            work.append(output.numel() * (products + OF_A_NUMBER))

    layers = [layer for layer in classifier.net.modules() if not isinstance(layer, torch.jit.ScriptModule)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    classifier.net.eval()
    try:
        with contextlib.suppress(Exception), torch.no_grad():  # its errors show in the passes
            classifier(torch.zeros(1, *input_shape, device=classifier.mean.device))
    finally:
        for handle in handles:
            handle.remove()
    return min(MOST, max(FEWEST, BUDGET // max(1, sum(work))))


def _pass(classifier: Classifier, x: Tensor, setting: Setting) -> Pass:
    found = Pass(len(x), f"{len(x)} image{'s' if len(x) > 1 else ''} in {setting.text}")
    net = classifier.net
    net.train(setting.train)
    x = x.clone().requires_grad_(setting.gradient)
    try:
        with torch.set_grad_enabled(setting.gradient):
            z = (x - classifier.mean) / classifier.std
            version = z._version
            with torch.autocast(x.device.type, torch.bfloat16, enabled=setting.bf16):
                found.output = net(z)
            found.changed_input = z._version != version
            logits = found.logits
            if logits is not None and setting.gradient:
                _backward(found, x, net if setting.train else nn.Module())
    except Exception as error:  # the user's code may raise anything
        found.error = describe(error)
    return found


def _backward(found: Pass, x: Tensor, net: nn.Module) -> None:
    """Gradients, for pixels and the parameters of `net`, of the sum of logits, each times a number of its own."""
    weights = torch.rand(found.output.shape, generator=generator("probe", "logits")).to(found.output.device) + 0.5
    weights[:, ::2] *= -1
    found.cut = not found.output.requires_grad
    if found.cut:
        return
    named = {name: value for name, value in net.named_parameters() if _trainable(value)}
    total = (found.output.float() * weights).sum()
    found.pixels, *others = torch.autograd.grad(total, (x, *named.values()), allow_unused=True)
    found.missing = {name for name, gradient in zip(named, others, strict=True) if gradient is None}


def _trainable(value: Tensor) -> bool:
    return value.is_floating_point()


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters()) | dict(net.named_buffers())


def _equal(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and found.shape == expected.shape and bool(torch.equal(found, expected))


@contextlib.contextmanager
def _counted(layers: Mapping[str, nn.Module]) -> Iterator[Counter[str]]:
    """Count the calls of layers by name inside the block."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def restored(net: nn.Module) -> Iterator[None]:
    """Put tensors, modes, gradients and what is to be trained back after the block."""
    modes = [(module, module.training) for module in net.modules()]
    stores: list[Any] = [store for module in net.modules() for store in (module._parameters, module._buffers)]
    places = [(store, dict(store.items())) for store in stores]
    tensors = {id(t): t for _, before in places for t in before.values() if t is not None}
    values = [(t, t.detach().clone(), t.requires_grad, t.grad) for t in tensors.values()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for store, before in places:
            if any(value is not before.get(name) for name, value in store.items()) or len(store) != len(before):
                store.clear()
                store.update(before)
        for tensor, value, trained, gradient in values:
            tensor.data = value
            if tensor.is_leaf:
                tensor.requires_grad_(trained)
                tensor.grad = gradient
