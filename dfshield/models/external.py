"""Networks beside a classifier: one that images are moved by (f_b), and one that imitates such a move (h).

Both are those of adversarial transformation (Xiao and Zheng, CVPR 2020).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

STRUCTURES: dict[str, tuple[Sequence[tuple[int, bool]], Sequence[int]]] = {
    "vgg": (((64, True), (128, True), (128, False), (128, True), (128, False), (128, True)), (512, 512)),
    "shallow": (((64, True), (128, True)), ()),
    "linear": ((), ()),
}
"""Structures of f_b: convolutions as (channels, whether a maximum over 2x2 pixels follows), and hidden linear layers.

``vgg`` is the publication's (table 4); the others are smaller ones of our own, for comparison.
"""
IMITATOR_WIDTH, IMITATOR_DEPTH = 32, 5
"""Channels and convolutions of h."""


def external_network(input_shape: tuple[int, int, int], classes: int, width: float, structure: str) -> nn.Module:
    """An f_b of one of the `STRUCTURES`: images (N,C,H,W) in [0,1] to logits (N,classes).

    `width` multiplies the numbers of channels and units. Maps of one pixel are not pooled any further.
    """
    channels, height, side = input_shape
    convolutions, hidden = STRUCTURES[structure]
    layers: list[nn.Module] = []
    for count, pooled in convolutions:
        out = max(1, round(count * width))
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
        if pooled and min(height, side) > 1:
            layers.append(nn.MaxPool2d(2))
            height, side = height // 2, side // 2
    layers.append(nn.Flatten())
    units = channels * height * side
    for count in hidden:
        out = max(1, round(count * width))
        layers += [nn.Linear(units, out), nn.ReLU(), nn.Dropout()]
        units = out
    return nn.Sequential(*layers, nn.Linear(units, classes))


class Imitator(nn.Module):
    """A fully convolutional h(x, δ) for g_δ(x): images (N,C,H,W) within `delta` of x.

    It sees x and the start x + δ, each (N,C,H,W), and has a gradient where g has none. The publication says no more
    of its layers than that they are convolutions.
    """

    def __init__(self, channels: int, delta: float) -> None:
        super().__init__()
        widths = [2 * channels, *[IMITATOR_WIDTH] * (IMITATOR_DEPTH - 1)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(IMITATOR_WIDTH, channels, 3, padding=1))
        self.delta = delta

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        moved: Tensor = x + self.delta * torch.tanh(self.layers(torch.cat([x, start], dim=1)))
        return moved
