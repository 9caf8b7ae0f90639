"""The scale in which images are made: z of x = mean + std·z, per channel.

Synthesis starts from N(0,1), takes steps of one size and weighs differences of neighbours, so z has to be what a
network is trained on: inputs of about unit variance. Most often that is the configured normalisation. A network may
normalise inside as well, or take bytes, or have BatchNorm for its first layer; it is the same function of the pixels
then, and the same images have to come out. So the scale is measured: it is what the first layer with weights sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dfshield.core.hashing import canonical_json
from dfshield.core.progress import log
from dfshield.core.rng import seeded
from dfshield.models.classifier import Classifier

MEAN, STD = 0.5, 0.25
"""The scale of pixels in [0,1] that nothing normalises: about that of photographs."""
PLAUSIBLE = (0.01, 0.6)
"""Standard deviations that pixels in [0,1] have; theirs is 1/2 at the most, that of bytes would be 1/255."""
TOLERANCE = 1e-3
"""Largest deviation from an affine map, relative to the largest value."""
OPERANDS = {
    torch.ops.aten.convolution: (0, 1),
    torch.ops.aten.mm: (0, 1),
    torch.ops.aten.bmm: (0, 1),
    torch.ops.aten.addmm: (1, 2),
    torch.ops.aten.baddbmm: (1, 2),
}
"""Where the operations of layers with weights have input and weight, in either order."""
NORMS = (torch.ops.aten.native_batch_norm, torch.ops.aten.cudnn_batch_norm)
"""Operations of BatchNorm; their arguments are x, weight, bias, running mean and variance, training, momentum, ε."""


class Scale(NamedTuple):
    """Mean and standard deviation per channel, for pixels in [0,1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def plausible(self) -> bool:
        """Whether pixels in [0,1] can have these deviations."""
        return all(PLAUSIBLE[0] <= value <= PLAUSIBLE[1] for value in self.std)


class Rescaled(nn.Module):
    """A network whose input is in another scale than that of the network inside."""

    factor: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.net(self.factor * z + self.shift)
        return logits


def in_own_scale(teacher: Classifier, shape: tuple[int, int, int]) -> Classifier:
    """The same function of images (C,H,W), with mean and std for which its first layer sees unit variance.

    That is the teacher itself, as it is, where its own mean and std are these. Else one log line says what is used:
    where the layer's input has no scale of pixels, `MEAN` and `STD`; where it is no affine map of each channel's
    pixels, so that nothing can be measured, the teacher's own if they can be those of pixels.
    """
    own = Scale(*(tuple(values.flatten().tolist()) for values in (teacher.mean, teacher.std)))
    measured = measure(teacher, shape)
    if measured and _alike(measured, own):
        measured = own
    scale = measured or own
    if not measured:
        reason = "what the network's first layer sees is not known to be an affine map of each channel's pixels"
    elif scale.plausible:
        reason = "the network normalises inside"
    else:
        reason = f"the network's first layer sees pixels that nothing brings to unit variance ({_shown(scale)})"
    if not scale.plausible:
        scale = _default(scale)
    if scale is not own or not measured:
        log(f"{reason}; images are made in the scale {_shown(scale)}")
    if scale is own:
        return teacher
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(teacher.mean) for values in scale)
    net = Rescaled(teacher.net, std / teacher.std, (mean - teacher.mean) / teacher.std)
    made = Classifier(net, *scale).to(teacher.mean.device).train(teacher.training)
    made.layout = teacher.layout
    return made


def stated_scale(made: Classifier, teacher: Classifier) -> dict[str, str]:
    """The attribute of a training set that says in which scale its images were made; none for the teacher's own."""
    if made is teacher:
        return {}
    scale = {name: [round(v, 6) for v in getattr(made, name).flatten().tolist()] for name in ("mean", "std")}
    return {"scale": canonical_json(scale)}


def measure(teacher: Classifier, shape: tuple[int, int, int]) -> Scale | None:
    """The scale of what the first layer sees, to six digits; None if that is no affine map of each channel's pixels.

    With BatchNorm for first layer it is that of its running statistics. Channels may be repeated or swapped, pixels
    moved, padded or resized on the way: a value counts that one channel decides, and the median over the values of a
    channel is its scale.
    """
    channels = shape[0]
    random = torch.Generator().manual_seed(0)
    black, one, other = torch.zeros(1, *shape), *torch.rand((2, 1, *shape), generator=random)
    other = 0.25 + other / 4  # of another contrast: to a network that stretches it, the mean of both is a third
    single = torch.eye(channels).view(channels, 1, channels, 1, 1) * torch.ones(shape)
    seen = _first_inputs(teacher, [black, one, other, (one + other) / 2, *single])
    if seen is None:
        return None
    zero, first, second, middle, *own = (values.flatten().double().cpu() for values in seen)
    slopes = torch.stack(own) - zero
    largest = slopes.abs().amax()
    if not all(bool(values.isfinite().all()) for values in seen) or largest == 0:
        return None
    curved = (middle - (first + second) / 2).abs().amax() > TOLERANCE * largest
    decides = slopes.abs() > TOLERANCE * slopes.abs().amax(1, keepdim=True)
    if curved or bool((decides.sum(0) > 1).any()):
        return None
    places = [(-zero[mine] / slope[mine], 1 / slope[mine].abs()) for slope, mine in zip(slopes, decides, strict=True)]
    if not all(len(mean) for mean, _ in places):
        return None
    mean, std = ([float(f"{float(values.median()):.6g}") for values in kind] for kind in zip(*places, strict=True))
    return Scale(tuple(round(value, 6) + 0.0 for value in mean), tuple(std))


class _Inputs(TorchDispatchMode):
    """Notes what layers with weights take in, as long as no weights have touched it: all parameters ask for gradients.

    As operations, because a user's layer need not be one of PyTorch's classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        if operation in OPERANDS:
            pair = [args[index] for index in OPERANDS[operation]]
            plain = [value for value in pair if not value.requires_grad]
            if len(plain) == 1:
                self.seen.append(plain[0].detach())
        elif operation in NORMS and args[3] is not None and not args[5] and not args[0].requires_grad:
            mean, variance = (values.view(-1, *[1] * (args[0].dim() - 2)) for values in args[3:5])
            self.seen.append((args[0] - mean) * (variance + args[7]).rsqrt())
        return func(*args, **(kwargs or {}))


def _first_inputs(teacher: Classifier, probes: list[Tensor]) -> list[Tensor] | None:
    """What the first layer whose input depends on the image (1,C,H,W) takes in, for each of the probes."""
    runs = []
    try:
        with _asking(teacher):
            for probe in probes:
                watch = _Inputs()
                with seeded(0, teacher.mean.device), torch.enable_grad(), watch:
                    teacher(probe.to(teacher.mean.device))
                runs.append(watch.seen)
    except Exception:  # generated code may refuse to be watched, in any way
        return None
    for values in zip(*runs, strict=False):
        if len({value.shape for value in values}) > 1:
            return None
        if any(not torch.equal(value, values[0]) for value in values):
            return list(values)
    return None


@contextmanager
def _asking(teacher: Classifier) -> Iterator[None]:
    """In eval mode, with gradients asked for all parameters; as it was afterwards."""
    training = teacher.training
    asked = [(p, p.requires_grad) for p in teacher.parameters() if p.is_floating_point()]
    try:
        teacher.eval()
        for parameter, _ in asked:
            parameter.requires_grad_(True)
        yield
    finally:
        teacher.train(training)
        for parameter, before in asked:
            parameter.requires_grad_(before)


def _alike(one: Scale, other: Scale) -> bool:
    pairs = zip(*one, *other, strict=True)
    return all(abs(a - b) <= TOLERANCE * d and abs(s / d - 1) <= TOLERANCE for a, s, b, d in pairs)


def _default(found: Scale) -> Scale:
    """A scale of pixels; a mean inside of their range is one that somebody has taken."""
    return Scale(tuple(value if 0 < value < 1 else MEAN for value in found.mean), (STD,) * len(found.std))


def _shown(scale: Scale) -> str:
    return " and ".join(f"{name} {[float(f'{v:.4g}') for v in values]}" for name, values in scale._asdict().items())
