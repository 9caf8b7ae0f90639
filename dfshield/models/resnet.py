"""ResNet-18 and -50 for 28x28 images: the paper's models for MedMNIST.

He et al., arXiv 1512.03385, with the first layer that is usual for small images: 3x3, stride 1, no max-pooling. Stage
widths 64, 128, 256, 512, strides 1, 2, 2, 2, global average pooling, one linear layer.
"""

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1x1 convolution where shape changes, else the identity."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def _basic(inputs: int, width: int, stride: int) -> tuple[Residual, int]:
    branch = nn.Sequential(_conv_bn(inputs, width, 3, stride), nn.ReLU(inplace=True), _conv_bn(width, width, 3))
    return Residual(branch, inputs, width, stride), width


def _bottleneck(inputs: int, width: int, stride: int) -> tuple[Residual, int]:
    branch = nn.Sequential(
        _conv_bn(inputs, width, 1),
        nn.ReLU(inplace=True),
        _conv_bn(width, width, 3, stride),
        nn.ReLU(inplace=True),
        _conv_bn(width, 4 * width, 1),
    )
    return Residual(branch, inputs, 4 * width, stride), 4 * width


def _resnet(input_shape: Shape, classes: int, bottleneck: bool, blocks: tuple[int, ...]) -> nn.Module:
    make = _bottleneck if bottleneck else _basic
    layers: list[nn.Module] = [_conv_bn(input_shape[0], 64, 3), nn.ReLU(inplace=True)]
    channels = 64
    for stage, count in enumerate(blocks):
        for index in range(count):
            block, channels = make(channels, 64 * 2**stage, 2 if stage and not index else 1)
            layers.append(block)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def resnet18(input_shape: Shape, classes: int) -> nn.Module:
    """Basic blocks [2,2,2,2]: 11,173,962 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    return _resnet(input_shape, classes, False, (2, 2, 2, 2))


def resnet50(input_shape: Shape, classes: int) -> nn.Module:
    """Bottlenecks [3,4,6,3]: 23,520,842 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    return _resnet(input_shape, classes, True, (3, 4, 6, 3))
