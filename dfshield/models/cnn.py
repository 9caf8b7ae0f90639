"""Two small BatchNorm networks for the demo: quick on two CPU cores, any input size, one larger than the other.

Plain stacks of 3x3 convolution, BatchNorm and ReLU of eight channels, average pooling to 2x2 and a linear layer. The
pooled map keeps a coarse layout: with one mean per channel the network would see a bag of strokes, and images
synthesised from it would be one. Images of 16 pixels or more meet a stride-2 first layer.
"""

from torch import nn

Shape = tuple[int, int, int]
WIDTH = 8
MAP = 2


def _stack(input_shape: Shape, classes: int, depth: int) -> nn.Module:
    channels, height, width = input_shape
    stride = 2 if min(height, width) >= 16 else 1
    modules: list[nn.Module] = []
    for _ in range(depth):
        modules += [
            nn.Conv2d(channels, WIDTH, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(inplace=True),
        ]
        channels, stride = WIDTH, 1
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(MAP), nn.Flatten(), nn.Linear(WIDTH * MAP * MAP, classes))


def cnn_s(input_shape: Shape, classes: int) -> nn.Module:
    """Three convolutions: 78,656 multiply-adds for an 8x8 grey image and 10 classes, 1,602 parameters.

    `input_shape` is (C,H,W).
    """
    return _stack(input_shape, classes, depth=3)


def cnn_m(input_shape: Shape, classes: int) -> nn.Module:
    """Four convolutions: 115,520 multiply-adds for an 8x8 grey image and 10 classes, 2,194 parameters.

    `input_shape` is (C,H,W).
    """
    return _stack(input_shape, classes, depth=4)
