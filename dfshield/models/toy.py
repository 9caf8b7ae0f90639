"""The network of Figure 3: four layers with BatchNorm, for points that are images of one pixel.

The paper states the number of layers alone; the width is a convention of this project. Its layers are 1x1 convolutions,
which on one pixel are linear layers, because synthesis watches the statistics of two-dimensional BatchNorm.
"""

from torch import nn

Shape = tuple[int, int, int]
WIDTH = 32


def toy(input_shape: Shape, classes: int) -> nn.Module:
    """Four layers: 2,176 multiply-adds for two values and 2 classes, 2,370 parameters. `input_shape` is (C,H,W)."""
    channels, modules = input_shape[0], []
    for _ in range(3):
        modules += [nn.Conv2d(channels, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)]
        channels = WIDTH
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes))
