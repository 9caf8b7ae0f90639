"""MobileNetV2 and ShuffleNetV2, width 1, for images of some 32 pixels.

Sandler et al., arXiv 1801.04381, Table 2; Ma et al., arXiv 1807.11164, Table 5. The published networks halve an image
of 224 pixels five times. As is usual for small images, the first layers keep its size and both halve it thrice:
MobileNetV2's first convolution and its stage of 24 channels have stride 1, ShuffleNetV2 has stride 1 and no max-pooling
before its stages. Neither has dropout.
"""

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""MobileNetV2's: expansion, channels, blocks, stride of the first block."""


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Widened, convolved by channel, narrowed without an activation; added to the input where its shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * inputs
        wider = [*_conv(inputs, width), nn.ReLU6(inplace=True)] if expansion > 1 else []
        by_channel = [*_conv(width, width, 3, stride, groups=width), nn.ReLU6(inplace=True)]
        self.branch = nn.Sequential(*wider, *by_channel, *_conv(width, outputs))
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.branch(x)
        return x + found if self.same else found


class ShuffleUnit(nn.Module):
    """Half of the channels convolved and the other half kept, then both shuffled; with stride 2 both are convolved."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.halves = stride == 1
        half = outputs // 2
        first = half if self.halves else inputs
        self.branch = nn.Sequential(
            *_conv(first, half),
            nn.ReLU(inplace=True),
            *_conv(half, half, 3, stride, groups=half),
            *_conv(half, half),
            nn.ReLU(inplace=True),
        )
        shortcut = [*_conv(inputs, inputs, 3, stride, groups=inputs), *_conv(inputs, half), nn.ReLU(inplace=True)]
        self.shortcut = nn.Identity() if self.halves else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = torch.chunk(x, 2, 1) if self.halves else (x, x)
        pair = torch.stack((self.shortcut(kept), self.branch(changed)), 2)  # (N,C/2,2,H,W): the two halves take turns
        return pair.flatten(1, 2)


def mobilenetv2(input_shape: Shape, classes: int) -> nn.Module:
    """2,236,682 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    layers, channels = [*_conv(input_shape[0], 32, 3), nn.ReLU6(inplace=True)], 32
    for expansion, outputs, blocks, stride in STAGES:
        for index in range(blocks):
            layers.append(InvertedResidual(channels, outputs, 1 if index else stride, expansion))
            channels = outputs
    layers += [*_conv(channels, 1280), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes))


def shufflenetv2(input_shape: Shape, classes: int) -> nn.Module:
    """1,263,854 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    layers, channels = [*_conv(input_shape[0], 24, 3), nn.ReLU(inplace=True)], 24
    for outputs, blocks in ((116, 4), (232, 8), (464, 4)):
        for index in range(blocks):
            layers.append(ShuffleUnit(channels, outputs, 1 if index else 2))
            channels = outputs
    layers += [*_conv(channels, 1024), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes))
