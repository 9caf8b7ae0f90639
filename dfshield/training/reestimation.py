"""BatchNorm statistics estimated anew for the weights that a training ends with.

Running statistics follow weights that change, and an average of weights never saw a mini-batch (Izmailov et al. 2018,
section 3.2). Their plain mean over one pass of the training images is that of the final weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dfshield.core.progress import log
from dfshield.models.passes import NORMS
from dfshield.models.standins import in_mode

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def reestimate(student: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics of BatchNorm to their means over `batches`, images (N,C,H,W) in [0,1], N > 1.

    Each mini-batch counts equally, and the variance is the unbiased one: BatchNorm with momentum None. All other layers
    are in eval mode, as they are when the student is used: nothing is dropped. Weights, other buffers, modes and
    momenta stay, and while `batches` makes its next images the student has its old statistics. A layer keeps them if no
    image reaches it or if `followers` leaves it out.
    """
    layers = followers(student)
    if not layers:
        log(
            "reestimate: the network has no BatchNorm layer with a running mean of its mini-batches; nothing is changed"
        )
        return
    estimates = [_statistics(layer) for layer in layers]
    for estimate in estimates:
        for value in estimate:
            value.zero_()
    for x in batches:
        _take_in(student, x, layers, estimates)
    for layer, estimate in zip(layers, estimates, strict=True):
        if estimate[-1]:
            _load(layer, estimate)


def followers(student: nn.Module) -> list[NORMS]:
    """BatchNorm layers whose statistics follow mini-batches in training as PyTorch's own do.

    Not those without running statistics, of momentum 0, with a forward of their own, or that the network keeps in eval
    mode while it trains.
    """
    modes = [(module, module.training) for module in student.modules()]
    student.train()
    found = [layer for layer in student.modules() if isinstance(layer, NORMS) and layer.training and _follows(layer)]
    for module, mode in modes:
        module.training = mode
    return found


def _follows(layer: NORMS) -> bool:
    whole = layer.track_running_stats and all(getattr(layer, name) is not None for name in STATISTICS)
    return whole and layer.momentum != 0 and type(layer).forward is NORMS.forward


def _take_in(student: nn.Module, x: Tensor, layers: list[NORMS], estimates: list[list[Tensor]]) -> None:
    """One mini-batch more in the `estimates`; the student stays as it is."""
    momenta = [layer.momentum for layer in layers]
    try:
        with in_mode(student, training=False), torch.no_grad():
            for layer, estimate in zip(layers, estimates, strict=True):
                layer.training, layer.momentum = True, None
                _load(layer, estimate)
            student(x)
            estimates[:] = map(_statistics, layers)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _statistics(layer: NORMS) -> list[Tensor]:
    return [getattr(layer, name).clone() for name in STATISTICS]


def _load(layer: NORMS, statistics: list[Tensor]) -> None:
    for name, value in zip(STATISTICS, statistics, strict=True):
        getattr(layer, name).copy_(value)
