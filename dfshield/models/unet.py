"""A small U-Net that predicts the noise in an image, for diffusion models (Ho et al., NeurIPS 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8
"""Groups of every GroupNorm layer; the width is a multiple of it."""
PERIOD = 10_000
"""Longest period of the time embedding, over 2π."""


def time_embedding(t: Tensor, size: int) -> Tensor:
    """Sinusoidal embedding (N,size) of times t (N,): sines, then cosines, of periods from 2π to 2π · `PERIOD`."""
    half = size // 2
    frequencies = torch.exp(-math.log(PERIOD) / (half - 1) * torch.arange(half, device=t.device, dtype=t.dtype))
    angles = t[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions with GroupNorm, to which the time is added in between.

    Maps (N,inputs,H,W) and embedded times (N,embedded) to maps (N,outputs,H,W). The last convolution starts at zero, so
    the block starts as its skip connection.
    """

    def __init__(self, inputs: int, outputs: int, embedded: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedded, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h))) + self.time(time)[:, :, None, None]
        out: Tensor = self.skip(h) + self.conv2(F.silu(self.norm2(inner)))
        return out


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class UNet(nn.Module):
    """Noisy images (N,channels,H,W), of any size, and times (N,) to the noise in them, (N,channels,H,W).

    Maps are halved twice, rounded up, by convolutions of stride two, and doubled by their nearest neighbour to the size
    of the skip connection; they have `width`, then twice `width` channels. `width` is a multiple of `GROUPS`.

    Differs from Ho et al.: two halvings in place of three, one block a level in place of two, no self-attention and no
    dropout.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width, embedded = width, 4 * width
        self.embed = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded), nn.SiLU())
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down1, self.half1 = Block(width, width, embedded), nn.Conv2d(width, width, 3, 2, 1)
        self.down2, self.half2 = Block(width, 2 * width, embedded), nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.middle = Block(2 * width, 2 * width, embedded)
        self.up2, self.up1 = Block(4 * width, 2 * width, embedded), Block(3 * width, width, embedded)
        self.norm, self.last = nn.GroupNorm(GROUPS, width), zero(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.embed(time_embedding(t.to(x.dtype), self.width))
        large = self.down1(self.first(x), time)
        small = self.down2(self.half1(large), time)
        h = self.middle(self.half2(small), time)
        h = self.up2(torch.cat((doubled(h, small), small), dim=1), time)
        h = self.up1(torch.cat((doubled(h, large), large), dim=1), time)
        noise: Tensor = self.last(F.silu(self.norm(h)))
        return noise


def doubled(h: Tensor, like: Tensor) -> Tensor:
    """Maps (N,C,h,w) at the size of `like`, each value that of its nearest neighbour."""
    return F.interpolate(h, size=like.shape[2:], mode="nearest")
