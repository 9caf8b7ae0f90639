"""A zoo of networks as people write them: each is used right by the program, or refused in one line.

`ZOO` has an entry for each. Those that are accepted can be built twice with the same weights: as their author wrote
them (`Entry.network`), and as a plain stack of layers that computes the same (`Entry.plain`).
"""

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from dfshield.core.rng import seeded

from .kept import KEPT, LOST, Fuses, MadeAtFirst
from .strange import (
    ActiveNorm,
    DrawsConstant,
    Extra,
    FrozenNorm,
    InPlainList,
    NotKept,
    Outputs,
    Plain,
    ReturnsNothing,
    Scale,
    Versioned,
    active,
    adapts,
    always_drops,
    by_flatten,
    by_hand,
    by_memory,
    by_view,
    changed,
    checkpointed,
    counts,
    detached_weights,
    drops,
    ends,
    features,
    fixed_batch,
    frozen,
    image,
    in_eval_without_graph,
    in_order,
    inference,
    normed,
    output,
    prints,
    projected,
    raises_while_training,
    remembers,
    rolls_dice,
    spectrum,
    straight_through,
    twice,
    while_training,
    with_norms,
)

Shape = tuple[int, int, int]


def library(module: str, name: str, **arguments: Any) -> Callable[[], nn.Module]:
    """A builder of a network of a library, imported when it is called."""
    return lambda: getattr(importlib.import_module(module), name)(**arguments)


def vision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return library("torchvision.models", name, weights=None, num_classes=10, **arguments)


def without_heads() -> nn.Module:
    net = vision("googlenet", init_weights=True)()
    net.aux_logits = False
    return net


@dataclass(frozen=True)
class Entry:
    """A network of the zoo."""

    build: Callable[[], nn.Module]
    plainly: Callable[[], nn.Module] | None = None
    """The same function of plain layers, with the same names of tensors; None: `build` is plain."""
    refusal: str = ""
    """Pattern of what it is refused with; empty: it is accepted."""
    says: str = ""
    """Pattern of what is said of it."""
    shape: Shape = (3, 16, 16)
    classes: int = 4
    slow: bool = False

    def network(self) -> nn.Module:
        """A new one in eval mode, with weights of its own and BatchNorm statistics that are settled."""
        return settled(self.build, self.shape)

    def plain(self) -> nn.Module:
        """What computes the same of plain layers, with the same weights."""
        net = (self.plainly or self.build)()
        net.load_state_dict(self.network().state_dict())
        return net.eval()


def settled(build: Callable[[], nn.Module], shape: Shape) -> nn.Module:
    """The network in eval mode, its statistics those of a few random images, as far as it takes them."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    with seeded(0), torch.no_grad(), quiet:
        net = build()
        with contextlib.suppress(Exception, SystemExit):
            net.train()
            for _ in range(2):
                net(torch.randn(8, *shape, dtype=next(net.parameters()).dtype))
    for parameter in net.parameters():
        parameter.grad = None
    net.eval()
    return net


def of_plain(build: Callable[[], nn.Module]) -> Entry:
    """An entry of what keeps something, compared with `Plain` where the names of its tensors are the same."""
    return Entry(build, Plain if build().state_dict().keys() == Plain().state_dict().keys() else None)


NOTHING_TO_MATCH = "it has no BatchNorm2d layer with running statistics; images are made .* without Eq 4: expect less"
SECOND = "a second network with the same weights computes something else; register all layers"
SMALL = {
    "plain": Entry(Plain),
    **{name: of_plain(build) for name, build in KEPT.items()},
    "fuses in eval mode": Entry(Fuses, says="not called: bn1; the others are matched"),
    "layer made at the first call": Entry(MadeAtFirst, refusal="makes fc.bias at its first call.*constructor"),
    "symbolically traced": Entry(lambda: torch.fx.symbolic_trace(Plain()), Plain),
    **{name: Entry(build, refusal="a second network with the same weights comp") for name, build in LOST.items()},
    "scripted": Entry(lambda: torch.jit.script(Plain()), refusal=r"are scripted: bn1, bn2; give the network itself"),
    "view of a map": Entry(
        changed(by_view, fc=lambda: nn.Linear(768, 4)), changed(by_flatten, fc=lambda: nn.Linear(768, 4))
    ),
    "activation in BatchNorm": Entry(changed(active, bn1=lambda: ActiveNorm(8), bn2=lambda: ActiveNorm(12)), Plain),
    "BatchNorm used twice": Entry(
        changed(twice, middle=lambda: nn.Conv2d(8, 8, 3, 1, 1)), says="bn1 .2 times.; every call"
    ),
    "BatchNorm1d beside": Entry(
        changed(projected, inner=lambda: nn.Linear(12, 12), norm=lambda: nn.BatchNorm1d(12)),
        says=r"statistics of norm \(BatchNorm1d\) are not matched",
    ),
    "SyncBatchNorm": Entry(with_norms(nn.SyncBatchNorm), Plain),
    "BatchNorm of lazy size": Entry(with_norms(lambda _: nn.LazyBatchNorm2d()), Plain),
    "BatchNorm left over": Entry(
        changed(Plain.forward, spare=lambda: nn.BatchNorm2d(3)), says="not called: spare; the others"
    ),
    "unused parameters": Entry(
        changed(Plain.forward, spare=Scale), says="no gradient reaches spare.factor in training"
    ),
    "frozen parameters": Entry(
        frozen, Plain, says="requires_grad is False for conv1.weight; all parameters are trained"
    ),
    "double": Entry(lambda: Plain().double(), Plain),
    "half": Entry(lambda: Plain().bfloat16(), Plain),
    "dropout": Entry(changed(drops), Plain),
    "dropout in eval mode": Entry(changed(always_drops), says="vary from one call to the next in eval mode; figures"),
    "random numbers of Python and NumPy": Entry(
        changed(rolls_dice), says="vary from one call to the next in eval mode; fi"
    ),
    "counter": Entry(changed(counts, calls=lambda: nn.Buffer(torch.zeros((), dtype=torch.int64))), says="change calls"),
    "prints": Entry(changed(prints), Plain),
    "straight-through rounding": Entry(changed(straight_through)),
    "spectrum": Entry(changed(spectrum, filter=lambda: nn.Parameter(torch.rand(8, 5)))),
    "writes into a float32 tensor": Entry(changed(in_order), says="bf16 autocast failed: .*; leave precision and"),
    "train() without a result": Entry(ReturnsNothing, Plain),
    "weights with a version": Entry(Versioned, Plain),
    "weight norm": Entry(normed(parametrizations.weight_norm)),
    "spectral norm": Entry(normed(parametrizations.spectral_norm)),
    "old weight norm": Entry(normed(nn.utils.weight_norm)),
    "in DataParallel": Entry(lambda: nn.DataParallel(Plain())),
    "tuple while training": Entry(
        while_training(lambda z: (z, z)), refusal="gives a tuple in training mode.*aux_logits=False"
    ),
    "list while training": Entry(while_training(lambda z: [z, z]), refusal="gives a list in training mode"),
    "dict while training": Entry(while_training(lambda z: {"out": z}), refusal="gives a dict in training mode"),
    "named tuple while training": Entry(
        while_training(lambda z: Outputs(z, z)), refusal="gives a Outputs in training mode"
    ),
    "more logits while training": Entry(
        while_training(lambda z: torch.cat([z, z], 1)), refusal=r"training mode: gives \[2, 8\] for 2 images, \[2, 4\]"
    ),
    "raises while training": Entry(changed(raises_while_training), refusal="training mode failed: NotImplementedError"),
    "tuple": Entry(output(lambda _, z: (z, z)), refusal="gives a tuple of 2 for one image.*return the logits alone"),
    "unflattened": Entry(
        output(lambda _, z: z[:, :, None, None]), refusal=r"\[1, 4, 1, 1\].*return logits.flatten\(1\)"
    ),
    "a map of logits": Entry(changed(lambda self, x: self.features(x)[:, :4]), refusal="a mean over the positions"),
    "squeezed": Entry(output(lambda _, z: z.squeeze()), refusal=r"flatten\(1\) where it has squeeze"),
    "one batch size": Entry(changed(fixed_batch), refusal=r"gives \[1, 4\] for \d+ images"),
    "other classes": Entry(lambda: Plain(5), refusal=r"gives \[1, 5\] for one image, \[1, 4\] is needed \(4 classes"),
    "class numbers": Entry(output(lambda _, z: z.argmax(1)), refusal=r"gives \[1\] for one image"),
    "integers": Entry(output(lambda _, z: z.long()), refusal="outputs are int64, float32 is needed"),
    "complex outputs": Entry(output(lambda _, z: z.to(torch.complex64)), refusal="outputs are complex64"),
    "double outputs": Entry(output(lambda _, z: z.double()), refusal="outputs are float64.*return float32"),
    "bf16 inside": Entry(image(lambda x: x.bfloat16()), refusal="forward pass with input_shape .* failed"),
    "batch statistics": Entry(
        changed(Plain.forward, bn2=lambda: nn.BatchNorm2d(12, track_running_stats=False)),
        refusal=r"depends on the other images of the batch \(bn2: no running statistics\)",
    ),
    "centred on the batch": Entry(features(lambda _, x: x - x.mean(0)), refusal="depends on the other images"),
    "scaled by the batch": Entry(output(lambda _, z: z / z.std()), refusal="depends on the other images|not finite"),
    "probabilities": Entry(output(lambda _, z: z.softmax(1)), refusal="outputs are probabilities.*return logits"),
    "log probabilities": Entry(output(lambda _, z: z.log_softmax(1)), refusal="are logarithms of probabilities"),
    "probabilities in eval mode": Entry(
        output(lambda m, z: z if m.training else z.softmax(1)), refusal="are probabilities"
    ),
    "changes its input": Entry(image(lambda x: x.sub_(0.5)), refusal="changes its input in place; write x = x - m"),
    "ReLU on its input": Entry(image(nn.ReLU(inplace=True)), refusal="changes its input in place"),
    "rounds pixels": Entry(
        image(lambda x: (x * 255).round() / 255), refusal="no gradient of the logits reaches the pixels"
    ),
    "binary pixels": Entry(image(lambda x: (x > 0.5).float()), refusal="no gradient of the logits reaches the pixels"),
    "detached": Entry(features(lambda _, x: x.detach()), refusal="no gradient of the logits reaches the pixels"),
    "without graph in eval mode": Entry(changed(in_eval_without_graph), refusal="forward cuts the graph"),
    "inference mode": Entry(changed(inference), refusal="forward cuts the graph"),
    "rounds logits": Entry(output(lambda _, z: z.round()), refusal="no gradient of the logits reaches the pixels"),
    "weights without gradient": Entry(
        changed(detached_weights, twin=Plain), refusal="no parameter gets a gradient in training mode"
    ),
    "BatchNorm by hand": Entry(changed(by_hand), refusal=r"none of its 2 BatchNorm2d layers .* is called \(bn1, bn2\)"),
    "without BatchNorm": Entry(with_norms(lambda n: nn.GroupNorm(2, n)), says=NOTHING_TO_MATCH),
    "frozen BatchNorm": Entry(
        with_norms(FrozenNorm), says=NOTHING_TO_MATCH + r"[^\n]*\nstatistics of bn1 \(FrozenNorm"
    ),
    "InstanceNorm": Entry(
        with_norms(lambda n: nn.InstanceNorm2d(n, track_running_stats=True)),
        says=NOTHING_TO_MATCH + r"[^\n]*\nstatistics of bn1 \(InstanceNorm2d\)",
    ),
    "remembers": Entry(changed(remembers), refusal="vary from one call to the next, with one random seed too; let"),
    "adapts": Entry(
        changed(adapts, mean=lambda: nn.Buffer(torch.zeros(3))), refusal="passes in eval mode change mean; change stat"
    ),
    "not a number": Entry(
        image(lambda x: (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True)),
        refusal=r"outputs are not finite for 2 of them \(a black one\)|outputs are not finite for 1",
    ),
    "gradient not a number": Entry(
        image(lambda x: x + (x - x.mean((2, 3), True)).square().mean((2, 3), True).sqrt()),
        refusal="gradient with respect to the pixels is not finite for 2 of 50 images .a black one",
    ),
    "parameter of integers": Entry(
        changed(Plain.forward, table=lambda: nn.Parameter(torch.arange(3), requires_grad=False)),
        refusal="parameters have to be floats: table is int64; register",
    ),
    "more than tensors": Entry(Extra, refusal="its state has more than tensors: _extra_state"),
    "by place in memory": Entry(changed(by_memory)),
    "activation checkpoints": Entry(
        changed(checkpointed), refusal="calls bn1, bn2 again in its backward pass.*checkpoint"
    ),
    "layer in a plain list": Entry(InPlainList, refusal=SECOND),
    "random constant": Entry(DrawsConstant, refusal=SECOND),
    "random buffer that is not stored": Entry(NotKept, refusal=SECOND),
    "ends the program": Entry(changed(ends), refusal=r"it ended the program \(SystemExit: 3\)"),
}
"""Networks of one idea each, which take milliseconds."""

ACCEPTED = (
    "resnet18",
    "resnext50_32x4d",
    "densenet121",
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
)
UNMATCHED = ("convnext_tiny", "squeezenet1_1", "swin_t")
"""Families of torchvision without BatchNorm."""
REFUSED = {
    "googlenet": r"gives a GoogLeNetOutputs in training mode.*aux_logits=False",
    "inception_v3": "forward pass with input_shape .* failed",
    "maxvit_t": "forward pass with input_shape .* failed",
}
"""Families of torchvision by what they are refused with, at 32 or at 64 pixels."""
CIFAR = {
    "resnet20": ("resnet_cifar", ""),
    "preresnet20": ("preresnet_cifar", ""),
    "seresnet20": ("seresnet_cifar", ""),
    "sepreresnet20": ("sepreresnet_cifar", ""),
    "densenet40_k12": ("densenet_cifar", ""),
    "resdropresnet20": ("resdropresnet_cifar", ""),
    "pyramidnet110_a48": ("pyramidnet_cifar", ""),
    "ror3_56": ("ror_cifar", ""),
    "rir": ("rir_cifar", ""),
    "shakeshakeresnet20_2x16d": ("shakeshakeresnet_cifar", ""),
    "diaresnet20": ("diaresnet_cifar", ""),
    "diapreresnet20": ("diapreresnet_cifar", ""),
}
"""Networks of pytorchcv for CIFAR-10: the module, and what it is refused with."""


def vit(side: int) -> nn.Module:
    """A vision transformer whose head is no longer zero, as torchvision leaves it: no gradient passes zeros."""
    net = vision("vit_b_32", image_size=side)()
    nn.init.normal_(net.heads.head.weight, std=0.1)
    return net


def _large(build: Callable[[], nn.Module], side: int, refusal: str = "", says: str = "") -> Entry:
    return Entry(build, refusal=refusal, says=says, shape=(3, side, side), classes=10, slow=True)


TORCHVISION = {
    **{f"{name} {side}": _large(vision(name), side) for name in ACCEPTED for side in (32, 64)},
    **{f"{name} {side}": _large(vision(name), side, why) for name, why in REFUSED.items() for side in (32, 64)},
    **{f"{name} {side}": _large(vision(name), side, says=NOTHING_TO_MATCH) for name in UNMATCHED for side in (32, 64)},
    **{f"vit {side}": _large(partial(vit, side), side, says=NOTHING_TO_MATCH) for side in (32, 64)},
    "alexnet 32": _large(vision("alexnet"), 32, "Output size is too small"),
    "alexnet 64": _large(vision("alexnet"), 64, says=NOTHING_TO_MATCH),
    "googlenet without heads": _large(
        without_heads, 64, says="called: aux1.conv.bn, aux2.conv.bn; the others.*\n.*aux1"
    ),
    "vgg11_bn 32": _large(vision("vgg11_bn"), 32),
}
PYTORCHCV = {
    f"pytorchcv {name}": _large(library(f"pytorchcv.models.{module}", f"{name}_cifar10"), 32, why)
    for name, (module, why) in CIFAR.items()
}
ZOO = SMALL | TORCHVISION | PYTORCHCV


def plain(name: str) -> nn.Module:
    """A factory for the plain form of the network of that name."""
    entry = ZOO[name]
    return (entry.plainly or entry.build)()


def build(name: str) -> nn.Module:
    """A factory for the command line: the network of that name, not settled."""
    return ZOO[name].build()
