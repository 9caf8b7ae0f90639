"""Two small BatchNorm networks for the demo: quick on two CPU cores, any input size, one larger than the other.

Plain stacks of 3x3 convolution, BatchNorm and ReLU with widths 16, 32, 64, global average pooling and a linear layer.
Images of 16 pixels or more meet a stride-2 first layer, which keeps 28x28 and 32x32 affordable.
"""

from torch import nn

Shape = tuple[int, int, int]


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def _stack(input_shape: Shape, classes: int, layers: tuple[tuple[int, int], ...]) -> nn.Module:
    channels, height, width = input_shape
    modules: list[nn.Module] = []
    for index, (outputs, stride) in enumerate(layers):
        first_stride = 2 if min(height, width) >= 16 else 1
        modules += _block(channels, outputs, stride if index else first_stride)
        channels = outputs
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def cnn_s(input_shape: Shape, classes: int) -> nn.Module:
    """Four convolutions: 304,768 multiply-adds for an 8x8 grey image and 10 classes, 33,338 parameters.

    `input_shape` is (C,H,W).
    """
    return _stack(input_shape, classes, ((16, 1), (32, 2), (32, 1), (64, 2)))


def cnn_m(input_shape: Shape, classes: int) -> nn.Module:
    """Six convolutions: 599,680 multiply-adds for an 8x8 grey image and 10 classes, 72,666 parameters.

    `input_shape` is (C,H,W).
    """
    return _stack(input_shape, classes, ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)))
