"""Stand-ins for a network (copies, other layouts, folded or watched layers), compared with it before they are used.

A network may keep feature maps in a hook's closure, share tensors behind PyTorch's back, or point at itself: a copy of
such a network answers from the original, or from what the original saw last, and an attack on it breaks nothing.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dfshield.core.device import compiled
from dfshield.core.errors import InputError, describe
from dfshield.core.progress import log
from dfshield.core.rng import generator, seeded
from dfshield.models.classifier import Classifier
from dfshield.models.passes import restored

M = TypeVar("M", bound=nn.Module)
TOLERANCE = 1e-3
"""Largest deviation of a stand-in's logits, relative to the largest logit."""
REMEDY = (
    "return everything from forward, and keep no feature map, module or tensor of the network in closures of hooks, "
    "globals or plain lists"
)
OTHER_SEED = 1
"""Seed of the first weights of a second network."""
REGISTER = (
    "register all layers (nn.ModuleList in place of a list) and keep all that it needs in parameters and buffers, "
    "with no random numbers drawn by the factory"
)


def trials(x: Tensor) -> list[Tensor]:
    """Inputs to compare on, of the size of the images `x` (N,C,H,W): some of them, one alone, and noise and extremes.

    Extremes are the smallest and largest value of `x`, and noise is between them.
    """
    x = x.detach()
    low, high = x.min(), x.max()
    noise = torch.rand((3, *x.shape[1:]), generator=generator("stand-in")).to(x)
    flat = torch.stack([torch.full_like(x[0], float(low)), torch.full_like(x[0], float(high))])
    return [x[:2], low + (high - low) * noise, flat, x[:1]]


def answers(net: nn.Module, inputs: list[Tensor]) -> list[Tensor] | None:
    """Logits (N,classes) in eval mode, on the same random draws at every call; None where the network raises.

    The network is as before afterwards.
    """
    device = inputs[0].device
    with in_eval_mode(net), seeded(0, device), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            return [net(x) for x in inputs]
        except Exception:  # the user's code may raise anything
            return None


@contextlib.contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; modes and buffers are put back afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    for module, _ in modes:  # a network's own eval() may do anything
        module.training = False
    try:
        with kept_buffers(net):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def alike(found: list[Tensor] | None, expected: list[Tensor] | None) -> bool:
    """Whether logits agree but for rounding."""
    if found is None or expected is None:
        return False
    return all(_alike(f, e) for f, e in zip(found, expected, strict=True))


def _alike(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or not torch.equal(found.isfinite(), expected.isfinite()):
        return False
    finite = expected.isfinite()
    largest = expected[finite].abs().max().clamp(min=1e-6) if finite.any() else torch.tensor(1e-6)
    return not finite.any() or bool((found - expected)[finite].abs().max() <= TOLERANCE * largest)


def stands_for(standin: nn.Module, live: nn.Module, x: Tensor) -> bool:
    """Whether `standin` answers as `live` does in eval mode, without looking into `live`, whose weights may change.

    `x` (N,C,H,W) is what both are called with. Comparison is on `trials`, and once more while every tensor of `live`
    holds NaN, which must not show. Random layers draw the same in both.
    """
    inputs = trials(x)
    with in_eval_mode(live):  # also while the other answers, who may call its layers
        expected, found = answers(live, inputs), answers(standin, inputs)
        if not alike(found, expected):
            return False
        with poisoned(live):
            again = answers(standin, inputs)
    return alike(again, found)


@contextlib.contextmanager
def poisoned(net: nn.Module) -> Iterator[None]:
    """NaN in all floating-point tensors of a network inside the block."""
    tensors = [t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data.fill_(math.nan)  # by .data: graphs that go through the network stay valid
        yield
    finally:
        for tensor, value in kept:
            tensor.data.copy_(value)


def settle(classifier: Classifier, input_shape: tuple[int, int, int]) -> None:
    """Choose how a user's classifier is laid out in memory and how it is copied; `input_shape` is (C,H,W).

    The fastest way that computes what the network computes is taken; another than the usual one is said. Raises
    InputError for a network that cannot be copied.
    """
    x = torch.rand((3, *input_shape), generator=generator("layout")).to(classifier.mean.device)
    settle_layout(classifier, x)
    for classifier.anew in (False, True):
        try:
            whole = stands_for(copy.deepcopy(classifier), classifier, x)
        except Exception:  # the user's attributes may be of any kind
            whole = False
        if whole:
            break
    else:
        raise InputError(f"no copy of the network computes what the network computes; {REMEDY}")
    if classifier.anew:
        log("a copy of the network answers from the original; where a second one is needed the factory builds it")


def check_second(classifier: Classifier, input_shape: tuple[int, int, int]) -> None:
    """Raise InputError unless a second network, from other first weights, is the same once it has the tensors.

    Tensors are all that is stored of a student. `input_shape` is (C,H,W).
    """
    assert classifier.build is not None
    x = torch.rand((3, *input_shape), generator=generator("second")).to(classifier.mean.device)
    net = classifier.build(seed=OTHER_SEED).to(x.device)
    net.load_state_dict(classifier.net.state_dict())
    second = Classifier(net, classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()).to(x.device)
    second.layout = classifier.layout
    if not stands_for(second, classifier, x):
        raise InputError(f"a second network with the same weights computes something else; {REGISTER}")


def settle_layout(classifier: Classifier, x: Tensor) -> None:
    """Choose channels_last, the fastest layout, if it changes nothing for images `x` (N,C,H,W); else contiguous.

    A network that views or strides through memory raises in channels_last, or answers otherwise. The weights stay as
    they are; `arranged` lays them out.
    """
    inputs = trials(x)
    with restored(classifier):  # strides, too: weights of one channel are contiguous in either layout, and not the same
        classifier.layout = torch.contiguous_format
        expected = answers(arranged(classifier), inputs)
        classifier.layout = torch.channels_last
        arranged(classifier)
        found = answers(classifier, [part.contiguous(memory_format=torch.channels_last) for part in inputs])
        reason = _fails(classifier, x) or ("" if alike(found, expected) else "its answers differ there")
    if reason:
        classifier.layout = torch.contiguous_format
        log(f"the network does not work in channels_last memory, which is faster ({reason}); contiguous is used")


def _fails(classifier: Classifier, x: Tensor) -> str:
    """What a forward and backward pass raises in the classifier's layout, in either mode; empty for nothing."""
    for training in (False, True):
        with restored(classifier), seeded(0, x.device), torch.enable_grad():
            classifier.train(training)
            try:
                classifier(x.contiguous(memory_format=classifier.layout).requires_grad_()).sum().backward()
            except Exception as error:  # the user's code may raise anything
                return describe(error)
    return ""


def generated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` (or a network) as generated code, unless its first answer differs from the plain one's, which is said.

    So it does for a network that draws random numbers, which generated code draws in another way.
    """
    made: Callable[..., Tensor] = compiled(function)
    chosen: list[Callable[..., Tensor]] = []

    def call(*arguments: Any) -> Tensor:
        if not chosen:
            with kept_buffers(function), seeded(0), torch.no_grad():
                expected = function(*arguments)
            with kept_buffers(function), seeded(0):
                found = made(*arguments).detach()
            chosen.append(made if alike([found], [expected]) else function)
            if chosen == [function]:
                log("generated code of the network answers otherwise than the network; it is not used")
        return chosen[0](*arguments)

    return call


@contextlib.contextmanager
def kept_buffers(net: Any) -> Iterator[None]:
    """Put the buffers of a network back after the block, in place; nothing for what is no network."""
    buffers = [(b, b.detach().clone()) for b in net.buffers()] if isinstance(net, nn.Module) else []
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.data.copy_(value)


def arranged(model: M) -> M:
    """`model` with its weights in its own memory layout, or channels_last where it has none of its own."""
    return model.to(memory_format=layout_of(model))  # type: ignore[call-overload]


def layout_of(model: nn.Module) -> torch.memory_format:
    """The memory layout in which a model works: that of the classifier in it."""
    return next((m.layout for m in model.modules() if isinstance(m, Classifier)), torch.channels_last)
