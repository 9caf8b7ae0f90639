"""What a strange network is checked for before any work: the ways in which one computes right and yet cannot be used.

A network is run as the stages run it (`dfshield.models.passes`): both modes, forwards and backwards, fp32
and bf16, batches of several sizes. Each entry of `CHECKS` knows one trouble and its remedy. A refusal is an InputError
of one line; what can be worked with is said.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.models.card import Card
from dfshield.models.classifier import Classifier
from dfshield.models.passes import NORMS, PLAIN, Walk, walk
from dfshield.models.statistics import NONE, matched_layers, other_statistics

SHARE = 0.01
"""Difference of two passes, as a share of the spread between images, that is more than rounding."""
ROUNDING = 1e-4
"""Difference of two passes, relative to the largest logit, that may be rounding."""


def refuse_misfit(output: Any, images: int, classes: int, where: str) -> None:
    """Raise InputError unless `output` is a tensor (images,classes)."""
    if text := _misfit(output, images, classes):
        raise InputError(f"{where}: {text}")


def _misfit(output: Any, images: int, classes: int) -> str:
    """What is wrong with the form of an output and what to do; empty where it is (images,classes)."""
    n = "one image" if images == 1 else f"{images} images"
    wanted = f"{[images, classes]} is needed"
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        held = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
        return f"gives a {kind}{held} for {n}, {wanted}; return the logits alone"
    shape = list(output.shape)
    if shape == [images, classes]:
        return ""
    remedy = f"({classes} classes); correct classes or the factory's arguments"
    if output.ndim > 2 and shape[:2] == [images, classes] and output.numel() == images * classes:
        remedy = "; return logits.flatten(1)"
    elif output.ndim > 2 and shape[:2] == [images, classes]:
        remedy = "; return one logit per class and image, as a mean over the positions"
    elif shape == [classes] and images == 1:
        remedy = "; write flatten(1) where it has squeeze()"
    return f"gives {shape} for {n}, {wanted} {remedy}".replace(" ;", ";")


def _form_in(*names: str) -> Callable[[Walk], str]:
    def found(seen: Walk) -> str:
        for name in names:
            one = seen.passes[name]
            if not one.error and (text := _misfit(one.output, one.images, seen.classes)):
                return f"{one.text}: {text}"
        return ""

    return found


def _raises(*names: str) -> Callable[[Walk], str]:
    def found(seen: Walk) -> str:
        return next((f"{p.text} failed: {p.error}" for name in names if (p := seen.passes[name]).error), "")

    return found


def _several_outputs(seen: Walk) -> str:
    one = seen.passes["train two"]
    if one.error or isinstance(one.output, Tensor):
        return ""
    switch = " (its aux_logits is True)" if getattr(seen.net, "aux_logits", False) is True else ""
    return f"gives a {type(one.output).__name__} in training mode{switch}, its logits alone in eval mode"


def _types(seen: Walk) -> str:
    for name in PLAIN:
        value = seen.passes[name].output
        if isinstance(value, Tensor) and value.dtype != torch.float32:
            return f"its outputs are {_type(value)}, float32 is needed"
        if isinstance(value, Tensor) and value.device != seen.device:
            return f"its outputs are on {value.device}, its input on {seen.device}"
    return ""


def _parameter_types(seen: Walk) -> str:
    odd = [f"{name} is {_type(p)}" for name, p in seen.net.named_parameters() if not p.is_floating_point()]
    return f"parameters have to be floats: {_first(odd)}" if odd else ""


def _state(seen: Walk) -> str:
    odd = [name for name, value in seen.net.state_dict().items() if not isinstance(value, Tensor)]
    return f"its state has more than tensors: {_first(odd)}" if odd else ""


def _not_finite(seen: Walk) -> str:
    for one in seen.passes.values():
        if one.text and "bf16" not in one.text and one.logits is not None and not one.logits.isfinite().all():
            rows = (~one.logits.isfinite()).any(1).nonzero().flatten().tolist()
            kinds = {0: " (a black one)", 1: " (a white one)"} if one is seen.passes["many"] else {}
            return f"{one.text}: outputs are not finite for {len(rows)} of them{kinds.get(rows[0], '')}"
    return ""


def _gradient_not_finite(seen: Walk) -> str:
    one = seen.passes["many"]
    if one.pixels is None or one.pixels.isfinite().all():
        return ""
    rows = (~one.pixels.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    kind = {0: " (a black one)", 1: " (a white one)"}.get(rows[0], "")
    return f"the gradient with respect to the pixels is not finite for {len(rows)} of {one.images} images{kind}"


def _changed_input(seen: Walk) -> str:
    found = next((p for p in seen.passes.values() if p.changed_input), None)
    return f"{found.text}: it changes its input in place" if found else ""


def _no_pixel_gradient(seen: Walk) -> str:
    one = seen.passes["many"]
    if one.logits is None:
        return ""
    if one.cut:
        return "the logits have no gradient in eval mode: its forward cuts the graph"
    if one.pixels is None or not one.pixels.any():
        return "no gradient of the logits reaches the pixels in eval mode"
    return ""


def _partly_no_pixel_gradient(seen: Walk) -> str:
    pixels = seen.passes["many"].pixels
    if pixels is None or not pixels.any():
        return ""
    blind = [c for c in range(pixels.shape[1]) if not pixels[:, c].any()]
    if blind:
        return f"no gradient reaches the pixels of channel {blind[0]}" + f" and {len(blind) - 1} more" * (
            len(blind) > 1
        )
    dead = int((pixels.flatten(1) == 0).all(1).sum())
    return f"no gradient reaches the pixels of {dead} of {len(pixels)} images" if dead > len(pixels) / 2 else ""


def _no_weight_gradient(seen: Walk) -> str:
    one = seen.passes["train many"]
    nothing = one.logits is not None and (one.cut or not set(dict(seen.net.named_parameters())) - one.missing)
    return "no parameter gets a gradient in training mode" if nothing else ""


def _unreached(seen: Walk) -> str:
    names = seen.passes["train two"].missing & seen.passes["train many"].missing
    ordered = [name for name, _ in seen.net.named_parameters() if name in names]
    return f"no gradient reaches {_first(ordered)} in training" if ordered else ""


def _frozen(seen: Walk) -> str:
    return f"requires_grad is False for {_first(seen.frozen)}" if seen.frozen else ""


def _varies(seen: Walk) -> str:
    first, second = (seen.passes[name].logits for name in ("many", "repeated"))
    differ = _differ(first, second, first, SHARE / 100, ROUNDING / 100)
    return "its answers in eval mode vary from one call to the next, with one random seed too" if differ else ""


def _random(seen: Walk) -> str:
    first, second = (seen.passes[name].logits for name in ("many", "again"))
    differ = _differ(first, second, first, SHARE / 100, ROUNDING / 100)
    return "its answers vary from one call to the next in eval mode" if differ else ""


def _depends_on_batch(seen: Walk) -> str:
    many = seen.passes["many"].logits
    if many is None or _random(seen):
        return ""
    for name, rows in (("one", slice(0, 1)), ("two", slice(1, 3))):
        if _differ(seen.passes[name].logits, many[rows], many):
            loose = [n for n, m in seen.net.named_modules() if isinstance(m, NORMS) and m.running_mean is None]
            why = f" ({_first(loose)}: no running statistics)" if loose else ""
            return f"in eval mode its answer for an image depends on the other images of the batch{why}"
    return ""


def _no_bf16(seen: Walk) -> str:
    for name, plain in (("bf16", "two"), ("train bf16", "train two")):
        one = seen.passes[name]
        if seen.passes[plain].error:
            continue
        if one.error:
            return f"{one.text} failed: {one.error}"
        if one.logits is not None and not one.logits.isfinite().all():
            return f"{one.text}: outputs are not finite"
    return ""


def _changes_floats(seen: Walk) -> str:
    floats = [name for name in seen.changed if _tensor(seen.net, name).is_floating_point()]
    return f"passes in eval mode change {_first(floats)}" if floats else ""


def _changes_counters(seen: Walk) -> str:
    others = [name for name in seen.changed if not _tensor(seen.net, name).is_floating_point()]
    return f"passes in eval mode change {_first(others)}" if others else ""


def _layers_by_use(seen: Walk) -> tuple[list[str], list[str]]:
    """Names of BatchNorm2d layers with running statistics that are called in eval mode, and that are not."""
    matched = set(matched_layers(seen.net))
    own = [n for n, m in seen.net.named_modules() if m in matched]
    calls = seen.calls.get("again", Counter())
    return [n for n in own if n in calls], [n for n in own if n not in calls]


def _no_layer_called(seen: Walk) -> str:
    used, unused = _layers_by_use(seen)
    if used or not unused or seen.passes["many"].error:
        return ""
    return f"none of its {len(unused)} BatchNorm2d layers with running statistics is called ({_first(unused)})"


def _some_layers_unused(seen: Walk) -> str:
    used, unused = _layers_by_use(seen)
    return f"BatchNorm2d layers that are not called: {_first(unused)}" if used and unused else ""


def _layers_used_often(seen: Walk) -> str:
    calls = seen.calls.get("again", Counter())
    often = [f"{name} ({calls[name]} times)" for name in _layers_by_use(seen)[0] if calls[name] > 1]
    return f"BatchNorm2d layers that are called more than once: {_first(often)}" if often else ""


def _called_again(seen: Walk) -> str:
    without, within = (seen.calls.get(name, Counter()) for name in ("again", "many"))
    again = [name for name in _layers_by_use(seen)[0] if within[name] > without[name]]
    return f"it calls {_first(again)} again in its backward pass" if again else ""


def _other_norms(seen: Walk) -> str:
    others = [f"{n} ({type(m).__name__})" for n, m in seen.net.named_modules() if other_statistics(m)]
    return f"statistics of {_first(others)} are not matched" if others else ""


def _no_statistics(seen: Walk) -> str:
    return "" if matched_layers(seen.net) else f"it has {NONE}"


def _scripted(seen: Walk) -> str:
    hidden = [n for n, m in seen.net.named_modules() if isinstance(m, torch.jit.ScriptModule) and other_statistics(m)]
    return f"its layers with statistics are scripted: {_first(hidden)}" if hidden else ""


def _probabilities(seen: Walk) -> str:
    logits = seen.passes["many"].logits
    if logits is None or not logits.isfinite().all():
        return ""
    if logits.min() >= -1e-6 and (logits.sum(1) - 1).abs().max() < 1e-4:
        return "its outputs are probabilities: each row is non-negative and sums to 1"
    if logits.max() <= 1e-6 and logits.logsumexp(1).abs().max() < 1e-4:
        return "its outputs are logarithms of probabilities: the exponentials of each row sum to 1"
    return ""


@dataclass(frozen=True)
class Check:
    """One trouble that a network can have: how it shows, and what to do."""

    find: Callable[[Walk], str]
    """What was found, for a person; empty for nothing."""
    remedy: str
    """What to do; where it is not refused, what is done."""
    refuses: bool = True


OF_THE_CALLS = "correct its forward: the stages run it so"
CHECKS = {
    "state": Check(_state, "keep what belongs to it in tensors (buffers), without get_extra_state"),
    "parameter types": Check(_parameter_types, "register what is no float as a buffer"),
    "fails in eval mode": Check(_raises("one", "two", "many", "again", "repeated"), OF_THE_CALLS),
    "form in eval mode": Check(_form_in("one", "two", "many"), "of every batch size"),
    "input changed": Check(_changed_input, "write x = x - m in place of x -= m, and no inplace=True on the input"),
    "several outputs": Check(
        _several_outputs,
        "build it without auxiliary heads (aux_logits=False) or return the logits alone in training mode as well",
    ),
    "fails in training mode": Check(_raises("train two", "train many"), OF_THE_CALLS),
    "form in training mode": Check(_form_in("train two", "train many"), "in both modes"),
    "output types": Check(_types, "return float32 on the device of the input"),
    "not finite": Check(
        _not_finite, "check its weights, and that it divides by no zero, as the standard deviation of a plain image is"
    ),
    "state changes": Check(
        _changes_floats,
        "change statistics in training mode alone (if self.training), or its answers depend on the past",
    ),
    "probabilities": Check(_probabilities, "return logits, without softmax: all losses take them"),
    "no gradient to the pixels": Check(
        _no_pixel_gradient,
        "take no_grad, detach, round, argmax and the like out of its forward: synthesis follows this gradient",
    ),
    "gradient not finite": Check(_gradient_not_finite, "add a small number under its roots and logarithms"),
    "no gradient to the weights": Check(_no_weight_gradient, "take no_grad and detach out of its forward"),
    "depends on the past": Check(_varies, "let them depend on the image alone, not on earlier calls or the time"),
    "depends on the batch": Check(
        _depends_on_batch, "use running statistics, or nothing of other images, in eval mode"
    ),
    "scripted": Check(
        _scripted, "give the network itself, or the file of torch.jit.save: images are synthesised by matching them"
    ),
    "BatchNorm not called": Check(
        _no_layer_called, "images are synthesised by matching them: call them as layers, self.bn(x), in its forward"
    ),
    "BatchNorm called again": Check(_called_again, "build it without activation checkpoints (memory_efficient=False)"),
    "no statistics": Check(
        _no_statistics,
        "images are made from its answers alone, without Eq 4: expect less robustness, and let them start smooth and "
        "vary (synthesize: {start: smooth, inversion: {vary: true}})",
        refuses=False,
    ),
    "some BatchNorm not called": Check(_some_layers_unused, "the others are matched", refuses=False),
    "BatchNorm called often": Check(_layers_used_often, "every call is matched", refuses=False),
    "other statistics": Check(_other_norms, "only those of BatchNorm2d are", refuses=False),
    "random": Check(_random, "figures of robustness will be marked", refuses=False),
    "counters": Check(_changes_counters, "they are kept as they come", refuses=False),
    "frozen": Check(_frozen, "all parameters are trained all the same; what has to stay is a buffer", refuses=False),
    "no gradient to some weights": Check(_unreached, "they stay as they are", refuses=False),
    "gradient to some pixels": Check(_partly_no_pixel_gradient, "attacks cannot follow it there", refuses=False),
    "bf16": Check(_no_bf16, "leave precision and outer_precision at fp32", refuses=False),
}
"""All checks in the order in which they are made; the first that refuses ends it."""


def probe(classifier: Classifier, input_shape: tuple[int, int, int], classes: int, where: str) -> list[str]:
    """What is to be said of a network, which is as before afterwards; `where` names it in an error.

    Raises InputError for a network that the later stages could not use, or would use wrongly.
    """
    seen = walk(classifier, input_shape, classes)
    said = []
    for check in CHECKS.values():
        if text := check.find(seen):
            if check.refuses:
                raise InputError(f"{where}: {text}; {check.remedy}")
            said.append(f"{text}; {check.remedy}")
    return said


def refuse_bf16(options: BaseModel, classifier: Classifier, card: Card, where: Path) -> None:
    """Raise InputError if one of the `options` asks for bf16 and a network of the user's own cannot compute in it."""
    asked = [name for name in type(options).model_fields if getattr(options, name) == "bf16"]
    if card.factory is None or not asked:
        return
    seen = walk(classifier, card.input_shape, card.classes, ("two", "bf16", "train two", "train bf16"))
    if text := CHECKS["bf16"].find(seen):
        raise InputError(f"{where}: {text}; set {' and '.join(asked)} to fp32")


def _differ(
    found: Tensor | None, expected: Tensor | None, many: Tensor | None, share: float = SHARE, rounding: float = ROUNDING
) -> bool:
    """Whether logits (N,K) differ by more than rounding, measured by what differs between images in `many`."""
    if found is None or expected is None or many is None:
        return False
    spread = (many - many.mean(0)).abs().max()
    return bool((found - expected).abs().max() > share * spread + rounding * many.abs().max())


def _tensor(net: nn.Module, name: str) -> Tensor:
    """A parameter or buffer; an empty tensor where a pass has taken it away."""
    everything = dict(net.named_parameters()) | dict(net.named_buffers())
    return everything.get(name, torch.zeros(0))


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
