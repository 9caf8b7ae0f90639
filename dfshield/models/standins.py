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
LOOSE_TOLERANCE = 0.1
"""Norm of the deviation, relative to the whole, of what enlarges rounding: gradients at kinks, statistics of a batch.

Measured on the networks of torchvision in both layouts: up to 0.03 for gradients of 4 images in eval mode, up to 0.001
for logits of 8 images in training mode.
"""
REMEDY = (
    "return everything from forward, and keep no feature map, module or tensor of the network in closures of hooks, "
    "globals or plain lists"
)


def trials(x: Tensor) -> list[Tensor]:
    """Inputs to compare on, of the size of the images `x` (N,C,H,W): some of them, noise, extremes, and one alone.

    Extremes are the smallest and largest value of `x`, everywhere and in random places; noise is between them.
    """
    x = x.detach()
    low, high = x.min(), x.max()
    noise = torch.rand((3, *x.shape[1:]), generator=generator("stand-in")).to(x)
    flat = torch.stack([torch.full_like(x[0], float(low)), torch.full_like(x[0], float(high)), noise[0].round()])
    flat[2] = low + (high - low) * flat[2]
    return [x[:2], low + (high - low) * noise, flat, x[:1]]


def answers(net: nn.Module, inputs: list[Tensor], training: bool = False) -> list[Tensor] | None:
    """Logits (N,classes) in either mode, on the same random draws at every call; None where the network raises.

    The network is as before afterwards.
    """
    device = inputs[0].device
    with in_mode(net, training), seeded(0, device), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            return [net(x) for x in inputs]
        except Exception:  # the user's code may raise anything
            return None


@contextlib.contextmanager
def in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Training or eval mode inside the block; modes and buffers are put back afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    for module, _ in modes:  # a network's own train() may do anything
        module.training = training
    try:
        with kept_buffers(net):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def alike(found: list[Tensor] | None, expected: list[Tensor] | None, loosely: bool = False) -> bool:
    """Whether logits agree but for rounding; `loosely` where that is enlarged."""
    if found is None or expected is None:
        return False
    return all(_alike(f, e, loosely) for f, e in zip(found, expected, strict=True))


def _alike(found: Tensor, expected: Tensor, loosely: bool) -> bool:
    finite = expected.isfinite()
    if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
        return False
    if not finite.any():
        return True
    difference, whole = (found - expected)[finite], expected[finite]
    if loosely:
        return bool(difference.norm() <= LOOSE_TOLERANCE * whole.norm() + 1e-9)
    return bool(difference.abs().max() <= TOLERANCE * whole.abs().max().clamp(min=1e-6))


def stands_for(standin: nn.Module, live: nn.Module, x: Tensor, training: bool = False) -> bool:
    """Whether `standin` answers as `live` does, in either mode, without looking into `live`, whose weights may change.

    `x` (N,C,H,W) is what both are called with. Comparison is on `trials`, and the stand-in answers while every tensor
    of `live` holds NaN, which must not show. Random layers draw the same in both.
    """
    inputs = [part for part in trials(x) if len(part) > 1 or not training]  # batch statistics need two
    with in_mode(live, training):  # also while the other answers, who may call its layers
        expected = answers(live, inputs, training)
        with poisoned(live):
            found = answers(standin, inputs, training)
    return alike(found, expected, loosely=training)


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
    x = torch.rand((8, *input_shape), generator=generator("layout")).to(classifier.mean.device)
    x[0], x[1] = 0, 1
    settle_layout(classifier, x)
    for classifier.anew in (False, True):
        try:
            made = copy.deepcopy(classifier)
        except Exception:  # the user's attributes may be of any kind
            continue
        if all(stands_for(made, classifier, x, training) for training in (False, True)):
            break
    else:
        raise InputError(f"no copy of the network computes what the network computes; {REMEDY}")
    if classifier.anew:
        log("a copy of the network answers from the original; where a second one is needed the factory builds it")


def settle_layout(classifier: Classifier, x: Tensor) -> None:
    """Choose channels_last, the fastest layout, if it changes nothing for images `x` (N,C,H,W); else contiguous.

    A network that views or strides through memory raises in channels_last, or answers otherwise. Compared are logits
    and gradients of the images in eval mode, and logits in training mode. The weights stay as they are; `arranged` lays
    them out.
    """
    with restored(classifier):  # strides, too: weights of one channel are contiguous in either layout, and not the same
        classifier.layout = torch.contiguous_format
        expected = _reactions(arranged(classifier), x, seed=0)
        other = _reactions(classifier, x, seed=1)
        classifier.layout = torch.channels_last
        found = _reactions(arranged(classifier), x, seed=0)
    reason = ""
    if isinstance(found, str):
        reason = found
    elif not isinstance(expected, str) and not isinstance(other, str):
        # what random numbers change anyway, they change in the order of the memory
        pairs = zip(_differ(found, expected), _differ(other, expected), strict=True)
        reason = "it computes something else there" if any(wrong and not drawn for wrong, drawn in pairs) else ""
    if reason:
        classifier.layout = torch.contiguous_format
        log(f"the network does not work in channels_last memory, which is faster ({reason}); contiguous is used")


def _differ(found: list[Tensor], expected: list[Tensor]) -> list[bool]:
    """Which of two `_reactions` are others; all but the first, logits in eval mode, are compared loosely."""
    return [not alike([f], [e], i > 0) for i, (f, e) in enumerate(zip(found, expected, strict=True))]


def _reactions(classifier: Classifier, x: Tensor, seed: int) -> list[Tensor] | str:
    """What `settle_layout` compares, in the classifier's layout; what a pass raises where one does, backwards too."""
    found = []
    for training in (False, True):
        with restored(classifier), seeded(seed, x.device), torch.enable_grad():
            classifier.train(training)
            images = x if training else x[: len(x) // 2]
            images = images.contiguous(memory_format=classifier.layout).requires_grad_()
            try:
                logits = classifier(images)
                (gradient,) = torch.autograd.grad(logits.square().sum(), images)
                found += [logits.detach()] if training else [logits.detach(), gradient]
            except Exception as error:  # the user's code may raise anything
                return describe(error)
    return found


def generated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` (or a network) as generated code, unless its first answer differs from the plain one's, which is said.

    So it does for a network that draws random numbers, which generated code draws in another way. In autocast the two
    round at different places, so they are compared loosely.
    """
    made: Callable[..., Tensor] = compiled(function)
    chosen: list[Callable[..., Tensor]] = []

    def call(*arguments: Any) -> Tensor:
        if not chosen:
            device = arguments[0].device
            with kept_buffers(function), seeded(0, device):
                found = made(*arguments).detach()
            with kept_buffers(function), seeded(0, device), torch.no_grad():
                same = alike([found], [function(*arguments)], loosely=torch.is_autocast_enabled(device.type))
            chosen.append(made if same else function)
            if not same:
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
