"""LPIPS, a distance of images by the features of VGG16 (Zhang et al., CVPR 2018, arXiv 1801.03924).

The features are those after the last activation of each of the five blocks, with unit length over the channels of a
place. The distance is the sum over blocks of the mean over places of squared differences, each channel by a weight that
was fitted to judgements of people (Eq 1).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.core.errors import InputError
from dfshield.core.files import KINDS, existing_file
from dfshield.models.formats import read_weights
from dfshield.models.weights import check_finite

BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Convolutions of VGG16 by their places in torchvision's ``features``; a max-pooling stands between blocks."""
CHANNELS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""By which images in [-1,1] are normalised."""
SMALLEST = 16
"""Pixels of a side that four max-poolings leave one of."""


class Lpips:
    """The distance, by weights from two files."""

    def __init__(self, vgg16: Path, channels: Path, device: torch.device) -> None:
        """Read torchvision's weights of VGG16 and the published ones of the channels; InputError for other files."""
        self.network, self.weights = (_state(path, device) for path in (vgg16, channels))
        first = 3
        for number, (places, width) in enumerate(zip(BLOCKS, CHANNELS, strict=True)):
            for place in places:
                _expect(vgg16, self.network, f"features.{place}.weight", (width, first, 3, 3))
                _expect(vgg16, self.network, f"features.{place}.bias", (width,))
                first = width
            _expect(channels, self.weights, f"lin{number}.model.1.weight", (1, width, 1, 1))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError for images (C,H,W) that are neither grey nor RGB, or have a side below 16 pixels."""
        if shape[0] not in (1, 3) or min(shape[1:]) < SMALLEST:
            raise InputError(f"lpips takes grey or RGB images from {SMALLEST} pixels on, these are {tuple(shape)}")

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) of images (N,C,H,W) in [0,1] that `check` lets pass; 0 for equal images."""
        total = torch.zeros(len(x), device=x.device)
        pairs = zip(self._features(x), self._features(y), strict=True)
        for number, (one, other) in enumerate(pairs):
            total += (self.weights[f"lin{number}.model.1.weight"] * (one - other).square()).sum(1).mean((1, 2))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
        x, found = (2 * x.float().expand(-1, 3, -1, -1) - 1 - shift) / scale, []
        for number, places in enumerate(BLOCKS):
            x = F.max_pool2d(x, 2) if number else x
            for place in places:
                name = f"features.{place}"
                x = F.conv2d(x, self.network[f"{name}.weight"], self.network[f"{name}.bias"], padding=1).relu()
            found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found


def _state(path: Path, device: torch.device) -> dict[str, Tensor]:
    existing_file(path, "weights file", f"give the path of {KINDS}")
    state = {name: value.float() for name, value in read_weights(path).items() if isinstance(value, Tensor)}
    check_finite(state, str(path))
    return {name: value.to(device) for name, value in state.items()}


def _expect(path: Path, state: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    if name not in state or tuple(state[name].shape) != shape:
        has = tuple(state[name].shape) if name in state else "missing"
        raise InputError(f"{path}: {name} is {has}, expected {shape}; give the published weights")
